"""Data distributions with exact denoisers, against which samplers and likelihoods are tested.

Under x_t = alpha x0 + sigma eps a Gaussian stays Gaussian and a mixture stays a mixture, so E[x0 |
x_t], the log-density at every t and (for the Gaussian) the probability-flow map are closed forms.
Points are (B, D); arrays of any shape (B, ...) with D entries per example are accepted, and results
have the same shape.

    target = gmm8()
    target.denoise(process) -> Denoise
    target.log_density(process, x, t) -> (B,)
    target.draw(keys, count) -> (count, 2)

Commands name a Target by its spec: `--target='gmm(modes=20, dim=16)'`. Targets are made of the
functions of targets/laws.py (denoise_mixture, flow, draw_gaussian, ...), which can be used on their
own. Where there is no flow map, targets/reference.py solves the flow numerically.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array, Denoise, Key, Process
from diffusion_jax.targets import laws
from diffusion_jax.targets.laws import Gaussian, Mixture


class Target(NamedTuple):
    """A data distribution with everything about it that is exact.

    Attributes:
      shape: shape of one example.
      denoise: denoise(process) -> Denoise.
      log_density: log_density(process, x (B, ...), t) -> (B,), nats at time t.
      draw: draw(keys, count) -> (count, *shape) in JAX's default precision.
      flow: flow(process, x, t, s) -> x at time s, the probability-flow map; None if the law is not
        Gaussian.
      modes: the Mixture of its well-separated parts, or None.
    """

    shape: tuple[int, ...]
    denoise: Callable[[Process], Denoise]
    log_density: Callable[[Process, Array, Array], Array]
    draw: Callable[[Key, int], Array]
    flow: Callable[[Process, Array, Array, Array], Array] | None = None
    modes: Mixture | None = None


def from_gaussian(law: Gaussian) -> Target:
    """Makes the Target of a Gaussian law.

    Args:
      law: the law of x0, in float64 if the target is used in float64.
    """
    return Target(
        shape=np.shape(law.mean),
        denoise=lambda process: laws.denoise_gaussian(law, process),
        log_density=lambda process, x, t: laws.log_density_gaussian(law, process, x, t),
        draw=lambda keys, count: laws.draw_gaussian(law, keys, count),
        flow=lambda process, x, t, s: laws.flow(law, process, x, t, s),
    )


def from_mixture(law: Mixture, modes: Mixture | None = None) -> Target:
    """Makes the Target of a mixture.

    Args:
      law: the law of x0, in float64 if the target is used in float64.
      modes: its well-separated parts, which may be fewer than its components.
    """
    return Target(
        shape=np.shape(law.means)[1:],
        denoise=lambda process: laws.denoise_mixture(law, process),
        log_density=lambda process, x, t: laws.log_density_mixture(law, process, x, t),
        draw=lambda keys, count: laws.draw_mixture(law, keys, count),
        modes=modes,
    )


def normal(dim: int = 2, seed: int = 0, condition: float = 100.0) -> Target:
    """A Gaussian with full covariance, and a random basis and mean.

    Args:
      dim: number of dimensions.
      seed: seed of the basis and the mean.
      condition: ratio of the largest variance, 1, to the smallest; the others are in equal ratios.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges(
        "normal", dim=(dim, 1, 4096), seed=(seed, 0, 2**32 - 1), condition=(condition, 1, 1e12)
    )
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    variances = condition ** -np.linspace(0.0, 1.0, dim)
    return from_gaussian(Gaussian(0.5 * rng.standard_normal(dim), variances, basis))


def standard_normal(dim: int = 2) -> Target:
    """N(0, I), as a mixture of one component.

    Args:
      dim: number of dimensions, from 1 to 10^6.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("standard_normal", dim=(dim, 1, 10**6))
    return _by_components(_law(np.ones(1), np.zeros((1, dim)), 1.0))


def gmm8(std: float = 0.1) -> Target:
    """Eight equal Gaussians on the unit circle, the usual toy.

    Args:
      std: standard deviation of each Gaussian, from 1e-6 to 100.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("gmm8", std=(std, 1e-6, 100))
    return _by_components(_law(np.ones(8), _polar(1.0, 2 * np.pi * np.arange(8) / 8), std))


def gmm(modes: int = 20, dim: int = 2, std: float = 0.1, seed: int = 0) -> Target:
    """A random mixture of Gaussians.

    The means are drawn from N(0, I), the standard deviations between std / 2 and 3 std / 2 for each
    axis, and the weights differ by a factor of three at most.

    Args:
      modes: number of Gaussians.
      dim: number of dimensions.
      std: mean of the standard deviations.
      seed: seed of the mixture.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges(
        "gmm",
        modes=(modes, 1, 10_000),
        dim=(dim, 1, 4096),
        std=(std, 1e-6, 100),
        seed=(seed, 0, 2**32 - 1),
    )
    rng = np.random.default_rng(seed)
    means, stds = rng.standard_normal((modes, dim)), std * rng.uniform(0.5, 1.5, (modes, dim))
    return _by_components(_law(rng.uniform(0.5, 1.5, modes), means, stds))


def checkerboard(fine: int = 6) -> Target:
    """The eight dark squares of a 4 x 4 board over [-1, 1]^2, each of many small Gaussians.

    Its modes are the squares.

    Args:
      fine: number of Gaussians along the side of a square, from 1 to 20.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("checkerboard", fine=(fine, 1, 20))
    corners = (
        np.array([(column, 2 * pair + column % 2) for column in range(4) for pair in range(2)]) / 2
        - 1
    )
    ticks = (np.arange(fine) + 0.5) / (2 * fine)
    within = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    means = (corners[:, None] + within).reshape(-1, 2)
    return from_mixture(
        _law(np.ones(len(means)), means, 0.25 / fine),
        _law(np.ones(8), corners + 0.25, math.sqrt(0.25 / 12)),
    )


def rings(std: float = 0.03) -> Target:
    """Three circles of radius 1/3, 2/3 and 1, of equal weight.

    Args:
      std: standard deviation across a circle, from 0.001 to 100.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("rings", std=(std, 1e-3, 100))
    counts = [math.ceil(2 * math.pi * (ring + 1) / 3 / (1.5 * std)) for ring in range(3)]
    circles = [
        _polar((ring + 1) / 3, 2 * np.pi * np.arange(n) / n) for ring, n in enumerate(counts)
    ]
    return from_mixture(
        _law(np.concatenate([np.full(n, 1 / n) for n in counts]), np.concatenate(circles), std)
    )


def two_moons(std: float = 0.05) -> Target:
    """Two interleaved half circles of radius 1, centered.

    Args:
      std: standard deviation across a half circle, from 0.001 to 100.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("two_moons", std=(std, 1e-3, 100))
    angle = np.linspace(0, np.pi, math.ceil(np.pi / (1.5 * std)))
    upper = _polar(1.0, angle) - [0.5, 0.25]
    return from_mixture(_law(np.ones(2 * len(angle)), np.concatenate([upper, -upper]), std))


def swiss_roll(std: float = 0.03, turns: float = 1.5) -> Target:
    """A spiral from radius 1/4 to 1, of equal density along its length.

    Args:
      std: standard deviation across the spiral, from 0.001 to 100.
      turns: number of turns, from 0.1 to 100.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("swiss_roll", std=(std, 1e-3, 100), turns=(turns, 0.1, 100))
    angle = np.linspace(0, 1, 4000) * 2 * np.pi * turns
    path = _polar(np.linspace(0.25, 1.0, 4000), angle)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    places = np.linspace(0, length[-1], math.ceil(length[-1] / (1.5 * std)))
    means = np.stack([np.interp(places, length, path[:, axis]) for axis in range(2)], 1)
    return from_mixture(_law(np.ones(len(means)), means, std))


def pinwheel(arms: int = 5, std: float = 0.05) -> Target:
    """Bent arms around the origin (Johnson et al. 2016): chains of Gaussians, wider outside.

    Args:
      arms: number of arms, from 1 to 1000.
      std: standard deviation of a Gaussian at radius 3/4, from 0.001 to 100.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("pinwheel", arms=(arms, 1, 1000), std=(std, 1e-3, 100))
    radius = np.linspace(0.3, 1.2, 24)
    angle = 2 * np.pi * np.arange(arms)[:, None] / arms + 1.0 * np.exp(0.6 * radius) - 1.0
    means = _polar(np.broadcast_to(radius, angle.shape), angle).reshape(-1, 2)
    stds = np.tile(std * (0.4 + 0.8 * radius), arms)[:, None]
    return from_mixture(
        _law(np.tile(np.exp(-0.5 * ((radius - 0.75) / 0.25) ** 2), arms), means, stds)
    )


def _by_components(law: Mixture) -> Target:
    """Makes the Target of a mixture whose components are its modes."""
    return from_mixture(law, law)


def _law(weights: np.ndarray, means: np.ndarray, stds: np.ndarray | float) -> Mixture:
    """Returns a Mixture of numpy float64, which is cast to the precision of its arguments."""
    weights, means = np.asarray(weights, float), np.asarray(means, float)
    return Mixture(
        weights / weights.sum(), means, np.broadcast_to(np.asarray(stds, float) ** 2, means.shape)
    )


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    """Returns the points of these polar coordinates, (..., 2)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


# The members of the family, which a config may name.
TARGETS = (
    from_gaussian,
    from_mixture,
    normal,
    standard_normal,
    gmm8,
    gmm,
    checkerboard,
    rings,
    two_moons,
    swiss_roll,
    pinwheel,
)
