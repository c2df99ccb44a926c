"""Everything a training run is at one moment, as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from diffusion_jax.core.types import Array, Key, Params
from diffusion_jax.training.ema import Ema


class TrainState(NamedTuple):
    """The arrays that a step changes and a checkpoint stores.

    Attributes:
      step: int32 scalar, the number of steps done, which is also the index of the next batch.
      params: the parameters.
      opt_state: the state of the optimizer.
      ema: averages of the parameters, by name (`ema.name`).
      key: a typed key that only a rollback changes (`nonfinite.roll_back`); step k draws from
        fold_in(key, k).
    """

    step: Array
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    key: Key


def init_state(params: Params, tx: optax.GradientTransformation, ema: Ema, key: Key) -> TrainState:
    """Make the state before the first step; every EMA starts at the parameters.

    `Runner.init` compiles this function and places its result.

    Args:
      params: the initial parameters.
      tx: the optimizer.
      ema: the averages that are kept.
      key: the key that all noise of the training is made from.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema.init(params), key)
