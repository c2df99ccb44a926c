"""Grids of times, placed for a sampler and a model."""
