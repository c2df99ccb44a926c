"""DDPM's chain of N noising steps as a path: a table of betas gives alpha and sigma at t_i = i / N,
i = 1..N.

Between the grid points log(alpha) is linear in t, that is, each beta_i acts at a constant rate
during its step; so the derived posterior, SDE and score hold at every t, and on the grid they are
Ho et al.'s (2020) alpha-bar_i = prod(1 - beta), mu-tilde and beta-tilde exactly. diffusers' integer
timestep j is our t = (j + 1) / N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError, need_range, unknown
from diffusion_jax.types import Array

MOST = 100_000  # steps of a chain; its tables are arrays of that length


@dataclass(frozen=True)
class DDPM:
    """The DDPM chain. betas: (N,) numbers in (0, 1); prefer the constructors `linear`, `cosine`,
    ... below.

    Raises UserError for betas outside (0, 1).
    """

    betas: tuple[float, ...]
    log_alphas: np.ndarray = field(
        init=False, repr=False, compare=False
    )  # (N + 1,) log alpha at i / N, 0 first
    t_max: float = 1.0

    def __post_init__(self):
        need_range("discrete.DDPM: t_max", self.t_max, 0, 1, above=True)
        betas = np.asarray(self.betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
            raise UserError(
                f"betas must be a list of numbers strictly between 0 and 1; got {np.array2string(betas, threshold=5)}"
            )
        object.__setattr__(
            self, "log_alphas", np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        )

    @property
    def steps(self) -> int:
        return len(self.betas)

    @property
    def t_min(self) -> float:
        return 1.0 / self.steps

    def log_alpha(self, t: Array) -> Array:
        """Linear between the grid points. Slopes have their own table: in float32 a difference of
        neighbours loses digits.
        """
        table, rise = jnp.asarray(self.log_alphas[:-1]), jnp.asarray(np.diff(self.log_alphas))
        place = jnp.asarray(t) * self.steps
        left = jnp.clip(jnp.ceil(place - 1e-3).astype(jnp.int32) - 1, 0, self.steps - 1)
        return table[left] + (place - left) * rise[left]

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))


def _betas_from_alpha_bar(alpha_bar, steps: int, max_beta: float = 0.999) -> np.ndarray:
    """beta_i = 1 - alpha_bar(i / N) / alpha_bar((i - 1) / N), capped (Nichol & Dhariwal 2021, sec.
    3.2).
    """
    grid = np.array([alpha_bar(i / steps) for i in range(steps + 1)])
    return np.minimum(1 - grid[1:] / grid[:-1], max_beta)


def ddpm(
    betas: str = "linear", steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02
) -> DDPM:
    """The DDPM chain by the name of its table of betas.

    linear (Ho et al. 2020), scaled_linear (linear in sqrt(beta); latent diffusion), cosine (Nichol
    & Dhariwal 2021, eq. 17, s = 0.008), sigmoid (GeoDiff, as in diffusers: a logistic ramp of
    betas). beta_min and beta_max are for N = 1000 and are scaled by 1000 / N as in improved DDPM,
    so that fewer steps reach the same noise. Raises UserError for an unknown name or too few steps.
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
