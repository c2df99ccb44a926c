"""The rate of dropout by resolution (Hoogeboom et al. 2023, "Simple diffusion", section 3.3)."""

from __future__ import annotations

from diffusion_jax.core.types import Array


def rate_at(h: Array, direction: str, rate: float, height: int) -> float:
    """The rate of dropout of a residual block.

    Args:
      h: the input of the block, (B, N_1, ..., N_d, C).
      direction: whether the block halves ('down'), doubles ('up') or keeps ('none') the resolution.
      rate: the rate of blocks that have dropout.
      height: the greatest N_1 of the output of such a block; 0 is all.
    """
    out = {"down": h.shape[1] // 2, "up": 2 * h.shape[1], "none": h.shape[1]}[direction]
    return rate if not height or out <= height else 0.0
