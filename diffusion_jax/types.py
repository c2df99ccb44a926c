"""The words every room speaks: arrays, predictions, noised examples, and the two protocols
(process, denoiser).

Symbols are the field's: x0 (data), x_t (noised data), eps (unit noise), alpha, sigma (the path x_t
= alpha x0 + sigma eps), lam (log-SNR, 2 log(alpha / sigma)), t and s (times in [0, 1], 0 = data;
"from t to s" means s < t).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array  # a typed key, jax.random.key(seed); or a (B,) array of them, one per example
Params = Any  # a pytree of arrays
# what the model is told besides x_t: None, or a dict of arrays with leading axis B ({'label':
# (B,)})
Cond = Any

Batch = dict[
    str, Array
]  # 'image': (B, H, W, C) float32 in [-1, 1]; 'label': (B,) int32 where the data set has labels


class Prediction(NamedTuple):
    """What x_t is made of: x_t = alpha(t) x0 + sigma(t) eps holds exactly, so affine mixes of
    predictions stay predictions.

    x0, eps: (B, ...) float32. nu: (B, ...) or None, the network's interpolation coefficient of the
    reverse variance (Nichol & Dhariwal 2021, eq. 15), present only when the network learns it.
    residual: (B,) or None, the noise level sigma / alpha that x0 itself still has: that of t_min
    for consistency functions whose boundary condition is there, None for an estimate of the data.
    """

    x0: Array
    eps: Array
    nu: Array | None = None
    residual: Array | None = None


class Noised(NamedTuple):
    """A training example after the forward process. x_t, x0, eps: (B, ...); t: (B,)."""

    x_t: Array
    t: Array
    x0: Array
    eps: Array


class Process(Protocol):
    """A Gaussian path: two functions of time and the interval on which they are used. All else
    follows (processes/gaussian.py).
    """

    t_min: float
    t_max: float

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...


class Denoise(Protocol):
    """(x_t, t, cond) -> Prediction; t scalar or (B,). Networks, guidance and analytic targets are
    all of this type.
    """

    def __call__(self, x_t: Array, t: Array, cond: Cond = None) -> Prediction: ...


Apply = Callable[
    ..., Array
]  # apply(params, x_in, c_noise, cond, **kwargs) -> the network's output F
