"""Families of generative models, compared on one data set."""
