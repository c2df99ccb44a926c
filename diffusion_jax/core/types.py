"""The types that all chapters share: arrays, predictions, noised examples, processes, denoisers.

Symbols are those of the literature: x0 (data), x_t (noised data), eps (unit noise), alpha and sigma
(the path x_t = alpha x0 + sigma eps), lam (log-SNR, 2 log(alpha / sigma)), t and s (times in [0,
1], 0 = data; "from t to s" means s < t).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array  # a typed key, jax.random.key(seed); or a (B,) array of them, one per example
Params = Any  # a pytree of arrays
# the condition, what a model is given besides x_t: None, or a dict of arrays with leading axis B,
# such as {'label': (B,)}
Cond = Any

# 'image': (B, H, W, C) float32 in [-1, 1]; 'label': (B,) int32 if the data set has labels
Batch = dict[str, Array]


class Prediction(NamedTuple):
    """A denoiser's estimate of x0 and eps in x_t.

    x_t = alpha(t) x0 + sigma(t) eps holds exactly, so affine combinations of predictions are
    predictions.

    Attributes:
      x0: (B, ...) float32.
      eps: (B, ...) float32.
      nu: (B, ...), the network's interpolation coefficient of the reverse variance (Nichol &
        Dhariwal 2021, eq. 15); None if the network does not learn it.
      residual: (B,), the noise level sigma / alpha that x0 itself still has: that of t_min for
        consistency functions whose boundary condition is there; None for an estimate of the data.
      log_variance: (B,), the network's own estimate of the logarithm of its loss at this noise
        level (Karras et al. 2024, eq. 21); None unless training asks for it.
      tokens: (B, T, D), tokens of an intermediate block, projected for representation alignment (Yu
        et al. 2025); None unless training asks for them.
      mean_shift: (B, ...), what an ancestral sampler adds to its mean, in units of its variance
        (Dhariwal & Nichol 2021, algorithm 1); None except under guidance.mean_shift.
    """

    x0: Array
    eps: Array
    nu: Array | None = None
    residual: Array | None = None
    log_variance: Array | None = None
    tokens: Array | None = None
    mean_shift: Array | None = None


class Noised(NamedTuple):
    """Training examples after the forward process.

    Attributes:
      x_t: (B, ...).
      t: (B,).
      x0: (B, ...).
      eps: (B, ...).
    """

    x_t: Array
    t: Array
    x0: Array
    eps: Array


class Process(Protocol):
    """A Gaussian path: two functions of time, and the interval on which they are used.

    Everything else follows from them (processes/gaussian.py).

    Attributes:
      t_min: the time of the data end.
      t_max: the time of the noise end.
    """

    t_min: float
    t_max: float

    def alpha(self, t: Array) -> Array:
        """The factor of x0 in x_t.

        Args:
          t: times in [t_min, t_max], a scalar or (B,).

        Returns:
          alpha, of t's shape, above 0.
        """
        ...

    def sigma(self, t: Array) -> Array:
        """The factor of eps in x_t.

        Args:
          t: times in [t_min, t_max], a scalar or (B,).

        Returns:
          sigma, of t's shape, above 0. The log-SNR 2 log(alpha / sigma) falls strictly with t.
        """
        ...


class Denoise(Protocol):
    """A denoiser: a network with its parameters, guidance, or an analytic target."""

    def __call__(self, x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        """Estimates x0 and eps.

        Args:
          x_t: noised data, (B, ...).
          t: the time of x_t, a scalar or (B,).
          cond: the condition, None or a dict of arrays with leading axis B.

        Returns:
          The prediction, whose x0 and eps have x_t's shape.
        """
        ...


# apply(params, x_in, c_noise, cond, **kwargs) -> the network's output F; with log_variance=True or
# tokens=True, where the network has it, (F, {field of Prediction: array})
Apply = Callable[..., Array]
