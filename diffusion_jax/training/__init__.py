"""Training, which knows a loss function and nothing of diffusion: state, step, EMAs, optimizers, devices, checkpoints, the loop."""
