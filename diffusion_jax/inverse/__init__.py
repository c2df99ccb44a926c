"""Inverse problems: measurements, methods that solve them with a diffusion model, and edits."""
