"""Training for any loss function: state, step, EMA, optimizer, devices, checkpoints and loop.

Nothing here depends on diffusion.
"""
