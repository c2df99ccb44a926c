"""Likelihoods of trained models."""
