"""Configs: base.py documents every key; each other file is a data set or a paper."""
