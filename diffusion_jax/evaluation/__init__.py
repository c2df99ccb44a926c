"""Evaluation: features, metrics and the judge of generated images."""
