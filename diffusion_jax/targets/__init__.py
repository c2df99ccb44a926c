"""Analytic data distributions, whose denoiser, score and posterior are known in closed form."""
