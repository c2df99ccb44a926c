"""Exponential moving averages of the parameters: several at once, each with a half-life in images.

    ema <- beta ema + (1 - beta) params,    beta = 0.5^(batch / h),    h = min(half-life, ramp * images seen)

Karras et al. 2022 (EDM), appendix F.2. A half-life counted in images does not change with the batch size; the ramp
keeps a young average from remembering the initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.arrays import tree_lerp
from diffusion_jax.errors import UserError
from diffusion_jax.types import Array, Params


class Ema(NamedTuple):
    """init: params -> {name: params}. update: (ema, params, images_seen before this batch, batch) -> ema, pure."""

    init: Callable[[Params], dict[str, Params]]
    update: Callable[[dict[str, Params], Params, Array, int], dict[str, Params]]


def name(halflife: float) -> str:
    """The name of a half-life in images: 500 -> '500', 50_000 -> '50k', 1_500_000 -> '1.5M'."""
    for unit, suffix in ((1_000_000, "M"), (1_000, "k")):
        if halflife >= unit:
            return f"{halflife / unit:.6g}{suffix}"
    return f"{halflife:.6g}"


def halflives(images: Sequence[float] = (50_000,), *, ramp: float | None = 0.05) -> Ema:
    """EMAs with the given half-lives in images, approached as ramp * (images seen) (ramp None or 0: not ramped).

    Raises UserError if a half-life is not positive or two have the same name.
    """
    spans = {name(h): float(h) for h in images}
    if len(spans) != len(images) or any(h <= 0 for h in spans.values()):
        raise UserError(f"ema half-lives {tuple(images)} must be positive and differ from one another")

    def init(params):
        return {key: params for key in spans}

    def update(ema, params, images_seen, batch):
        return {key: tree_lerp(ema[key], params, weight(h, images_seen, batch)) for key, h in spans.items()}

    def weight(halflife, images_seen, batch):  # 1 - beta, without the cancellation of beta near 1
        young = ramp * jnp.asarray(images_seen, jnp.float32) if ramp else jnp.inf
        return -jnp.expm1(-np.log(2) * batch / jnp.clip(young, 1e-8, halflife))

    return Ema(init, update)
