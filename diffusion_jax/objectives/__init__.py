"""Objectives: what networks are trained on."""
