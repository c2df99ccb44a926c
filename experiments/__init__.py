"""Command-line mains. Importing this package sets what XLA must be told before jax starts."""

from diffusion_jax.training import runtime

runtime.set_cpu_flags()
