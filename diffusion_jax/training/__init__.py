"""Training knows a loss function and nothing of diffusion: state, step, EMA, optimizer, devices,
checkpoints, loop.
"""
