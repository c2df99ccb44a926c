"""DDPM's chain of N noising steps as a process with continuous time.

A table of betas gives alpha and sigma at t_i = i / N, i = 1..N. Between these times log(alpha) is
linear in t, that is, each beta_i acts at a constant rate during its step. The derived posterior,
SDE and score therefore hold at every t, and at the times t_i they are exactly Ho et al.'s (2020)
alpha-bar_i = prod(1 - beta), mu-tilde and beta-tilde. diffusers' integer timestep j is t = (j + 1)
/ N.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, need_range, unknown
from diffusion_jax.core.types import Array

MOST = 100_000  # the most steps of a chain, whose tables are arrays of that length


@dataclass(frozen=True)
class DDPM:
    """The DDPM chain of a table of betas; `ddpm` makes the usual tables.

    Attributes:
      betas: (N,) numbers in (0, 1).
      log_alphas: (N + 1,) float64, log alpha at the times i / N, beginning with 0.
      t_max: end of the chain that is used, in (0, 1].

    Raises:
      UserError: for betas outside (0, 1).
    """

    betas: tuple[float, ...]
    log_alphas: np.ndarray = field(init=False, repr=False, compare=False)
    t_max: float = 1.0

    def __post_init__(self):
        need_range("discrete.DDPM: t_max", self.t_max, 0, 1, above=True)
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
            raise UserError(
                "betas must be a list of numbers strictly between 0 and 1; "
                f"got {np.array2string(betas, threshold=5)}"
            )
        object.__setattr__(
            self, "log_alphas", np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        )

    @property
    def steps(self) -> int:
        """N, the number of steps of the chain."""
        return len(self.betas)

    @property
    def t_min(self) -> float:
        """The time of the first step, 1 / N."""
        return 1.0 / self.steps

    def log_alpha(self, t: Array) -> Array:
        """Returns log alpha, linear between the steps.

        The slopes have a table of their own: a difference of adjacent values would lose digits in
        float32.

        Args:
          t: times in [0, 1], of any shape.

        Returns:
          log alpha, of t's shape, at most 0.
        """
        table, rise = jnp.asarray(self.log_alphas[:-1]), jnp.asarray(np.diff(self.log_alphas))
        place = jnp.asarray(t) * self.steps
        left = jnp.clip(jnp.ceil(place - 1e-3).astype(jnp.int32) - 1, 0, self.steps - 1)
        return table[left] + (place - left) * rise[left]

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))


def _betas_from_alpha_bar(
    alpha_bar: Callable[[float], float], steps: int, max_beta: float = 0.999
) -> np.ndarray:
    """Returns beta_i = 1 - alpha_bar(i / N) / alpha_bar((i - 1) / N), at most max_beta: (N,).

    (Nichol & Dhariwal 2021, sec. 3.2.)
    """
    grid = np.array([alpha_bar(i / steps) for i in range(steps + 1)])
    return np.minimum(1 - grid[1:] / grid[:-1], max_beta)


def ddpm(
    betas: str = "linear", steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02
) -> DDPM:
    """Makes the DDPM chain of a table of betas.

    Args:
      betas: 'linear' (Ho et al. 2020); 'scaled_linear' (linear in sqrt(beta); latent diffusion);
        'cosine' (Nichol & Dhariwal 2021, eq. 17, s = 0.008); 'sigmoid' (GeoDiff, as in diffusers: a
        logistic ramp of betas).
      steps: N, at least 2.
      beta_min: first beta of a chain of 1000 steps. For other N, beta_min and beta_max are scaled
        by 1000 / N, as in improved DDPM, so that fewer steps reach the same noise.
      beta_max: last beta of a chain of 1000 steps.

    Returns:
      The process of the chain.

    Raises:
      UserError: for an unknown name, or a number out of its range.
    """
    need_range("discrete.ddpm: steps", steps, 2, MOST)
    need_range("discrete.ddpm: beta_min", beta_min, 0, 1, above=True)
    need_range("discrete.ddpm: beta_max", beta_max, beta_min, 1)
    scale = 1000 / steps
    low, high = beta_min * scale, beta_max * scale
    ramp = np.linspace(0.0, 1.0, steps)
    tables = {
        "linear": lambda: low + ramp * (high - low),
        "scaled_linear": lambda: (math.sqrt(low) + ramp * (math.sqrt(high) - math.sqrt(low))) ** 2,
        "sigmoid": lambda: low + (high - low) / (1 + np.exp(-np.linspace(-6.0, 6.0, steps))),
        "cosine": lambda: _betas_from_alpha_bar(
            lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, steps
        ),
    }
    if betas not in tables:
        raise unknown("table of betas", betas, tables)
    return DDPM(tuple(tables[betas]().tolist()))


# The members of the family, which a config may name.
PROCESSES = (DDPM, ddpm)
