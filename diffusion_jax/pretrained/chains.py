"""The noise levels of a trained network as a chain of integer steps, as DDPM's schedulers need it.

Such a scheduler has a table of betas and gives the network the integer j of a step. A network of
this project is given c_noise and embeds 1000 c_noise, so that it already knows the steps

    j = 1000 c_noise + shift,        j = 0, 1, ..., N - 1,

of any path whose noise levels lie between those of t_min and t_max. Where the network's input
c_in x_t has unit variance, (c_in alpha)^2 + (c_in sigma)^2 = 1, it is the state of a
variance-preserving path, whatever the process is, and the table is

    beta_j = 1 - (alpha_j / alpha_{j-1})^2

with alpha_j = c_in alpha at the time of step j, and alpha_{-1} = 1. A network that is conditioned
on the log-SNR has steps of one size in log-SNR (0.008), one that is conditioned on the time those
of the process's own clock.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Process
from diffusion_jax.denoisers.parameterization import Parameterization

MOST = 10_000  # steps of a chain
FEWEST = 100

# N is chosen so that as many of these budgets as possible divide it: by at most this fraction of
# steps beyond t_max, at about its noise, or by leaving out the steps of most noise, where alpha is
# below LITTLE even without them
BUDGETS = (10, 20, 25, 50, 100, 250, 500, 1000)
EXTRA = 0.005
LITTLE = 0.03
HALVINGS = 60  # of the search for the time of a step


class Chain(NamedTuple):
    """A chain of N steps.

    Attributes:
      betas: (N,), float64.
      prediction: what the network predicts: 'eps', 'v' or 'x0'.
      factor: the output of the network is this factor times the prediction.
      shift: the network is given j - shift where the chain is at step j.
    """

    betas: np.ndarray
    prediction: str
    factor: float = 1.0
    shift: float = 0.0


class _Seen(NamedTuple):
    """The inputs and the output of a network at the times t (N,), in float64: F = a x0 + b eps."""

    alpha: np.ndarray
    sigma: np.ndarray
    c_noise: np.ndarray
    a: np.ndarray
    b: np.ndarray


def chain(process: Process, parameterization: Parameterization) -> Chain:
    """Return the chain of integer steps on which a network computes the same function.

    Args:
      process: the process that the network was trained on.
      parameterization: its parameterization.

    Raises:
      UserError: with the reason, for a network that has no such chain.
    """
    t = np.linspace(process.t_min, process.t_max, 257)
    seen = _seen(process, parameterization, t)
    if not np.allclose(np.hypot(seen.alpha, seen.sigma), 1, atol=1e-4):
        raise UserError("its input does not have unit variance for data of standard deviation 1")
    prediction, factor = _prediction(seen)
    if betas := getattr(process, "betas", ()):
        own = (np.arange(len(betas)) + 1) / len(betas)
        if np.allclose(
            1000 * _seen(process, parameterization, own).c_noise, np.arange(len(betas)), atol=0.01
        ):
            return Chain(np.asarray(betas), prediction, factor)
    low, high = (1000 * float(seen.c_noise[i]) for i in (0, -1))
    steps = int(high - low + 1 + 1e-6)
    if not FEWEST <= steps <= MOST or np.any(np.diff(seen.c_noise) <= 0):
        raise UserError(
            f"1000 c_noise goes from {low:g} to {high:g}, and {FEWEST} to {MOST} ascending "
            "integers are needed"
        )
    alpha = _whole(_at(process, parameterization, (low + np.arange(steps)) / 1000).alpha)
    betas = 1 - (alpha / np.concatenate([[1.0], alpha[:-1]])) ** 2
    return Chain(betas, prediction, factor, -low if abs(low) > 1e-6 else 0.0)


def _whole(alpha: np.ndarray) -> np.ndarray:
    """Return the alphas of a chain whose length suits the schedulers, which round N / budget."""
    missing = -len(alpha) % FEWEST
    if missing <= EXTRA * len(alpha) and _divides(len(alpha) + missing):
        return np.concatenate([alpha, alpha[-1] * (1 - 1e-3) ** np.arange(1, missing + 1)])
    lengths = [
        n
        for n in range(len(alpha), FEWEST - 1, -1)
        if alpha[n - 1] < LITTLE and n % 10 == 0 and _divides(n)
    ]
    return (
        alpha[: max(lengths, key=lambda n: sum(n % budget == 0 for budget in BUDGETS))]
        if lengths
        else alpha
    )


def _divides(steps: int) -> bool:
    """Whether range(N, 0, -N / budget) has as many steps as the budget, for every budget."""
    return all(
        len(np.arange(steps, 0, -(steps / budget))) == budget
        for budget in BUDGETS
        if budget <= steps
    )


def _seen(process: Process, parameterization: Parameterization, t: np.ndarray) -> _Seen:
    with jax.enable_x64(True):
        t = jnp.asarray(t, jnp.float64)
        c_in, c_noise = parameterization.encode(process, jnp.ones_like(t), t)
        a, b = parameterization.coefficients(process, t)
        return _Seen(
            *map(
                np.asarray, (c_in * process.alpha(t), c_in * process.sigma(t), c_noise, a / c_in, b)
            )
        )


def _prediction(seen: _Seen) -> tuple[str, float]:
    """Return (name, factor), where F is a constant times eps, v or x0."""
    zero, one = np.zeros_like(seen.alpha), np.ones_like(seen.alpha)
    pairs = {"eps": (zero, one), "v": (-seen.sigma, seen.alpha), "x0": (one, zero)}
    for name, pair in pairs.items():
        factor = float(
            np.sum(seen.a * pair[0] + seen.b * pair[1]) / np.sum(pair[0] ** 2 + pair[1] ** 2)
        )
        if (
            abs(factor) > 1e-6
            and np.allclose(seen.a, factor * pair[0], atol=1e-4)
            and np.allclose(seen.b, factor * pair[1], atol=1e-4)
        ):
            return name, factor
    raise UserError("it predicts neither eps nor v nor x0 up to a constant")


def _at(process: Process, parameterization: Parameterization, c_noise: np.ndarray) -> _Seen:
    """Return what the network sees where it is given these values of c_noise, which rise with t."""
    low, high = np.full(len(c_noise), process.t_min), np.full(len(c_noise), process.t_max)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = _seen(process, parameterization, middle).c_noise < c_noise
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return _seen(process, parameterization, 0.5 * (low + high))
