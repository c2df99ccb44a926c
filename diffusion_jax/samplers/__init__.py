"""Samplers: methods that turn noise into data with a denoiser, and their grids of times."""
