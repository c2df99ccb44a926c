"""Everything a training run is at one moment, as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from diffusion_jax.training.ema import Ema
from diffusion_jax.types import Array, Key, Params


class TrainState(NamedTuple):
    """What a step moves and a checkpoint holds: arrays only. The data position is `step` itself.

    step: int32 scalar, the number of steps done, which is also the index of the next batch. key: a
    typed key that only a rollback changes (loop.roll_back); step k draws from fold_in(key, k). ema:
    {name: a tree like params}, names as in `ema.name`.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    key: Key


def init_state(params: Params, tx: optax.GradientTransformation, ema: Ema, key: Key) -> TrainState:
    """The state before the first step; every EMA starts at params. For `Runner.init`, which
    compiles and places it.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema.init(params), key)
