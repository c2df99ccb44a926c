"""diffusion_jax: diffusion models in JAX and Flax, purely functional. Start at docs/design.md."""

from __future__ import annotations

__version__ = "0.1.0"
