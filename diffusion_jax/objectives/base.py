"""What a diffusion objective is: draw noise, then score a denoiser. All randomness is in `draw`; `loss` is deterministic."""

from __future__ import annotations

from typing import Callable, NamedTuple

from diffusion_jax.types import Array, Cond, Denoise, Key, Noised


class Objective(NamedTuple):
    """draw(keys (B,), x0 (B, ...)) -> Noised;  loss(denoise, noised, cond) -> (B,), one number per example."""

    draw: Callable[[Key, Array], Noised]
    loss: Callable[[Denoise, Noised, Cond], Array]
