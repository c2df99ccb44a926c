"""The processes of the literature: two functions of t in [0, 1] each, exact in float32 near 0.

    name           alpha(t)        sigma(t)                   from
    VP             exp(-B(t)/2)    sqrt(1 - alpha^2)          Song et al. 2021, eq. 32-33
    SubVP          exp(-B(t)/2)    1 - alpha^2                Song et al. 2021, eq. 34-35
    VE             1               s_min (s_max / s_min)^t    Song et al. 2021, eq. 30-31
    EDM            1               s_max t                    Karras et al. 2022, table 1
    Cosine         cos(pi t / 2)   sin(pi t / 2)              Nichol & Dhariwal 2021, eq. 17
    TrigFlow       cos(pi t / 2)   s_data sin(pi t / 2)       Lu & Song 2025, sec. 3
    RectifiedFlow  1 - t           t                          Liu et al. 2023; Lipman et al. 2023
    VDM            sqrt(1 - s^2)   s = sqrt(sigmoid(gamma))   Kingma et al. 2021, sec. 3, appendix H

`Shifted` is another process with its log-SNR moved by 2 log(1 / shift) (Hoogeboom et al. 2023, sec.
3.1). DDPM's table of betas is in processes/discrete.py.

To add one, write a frozen dataclass with t_min, t_max, alpha and sigma here and list it in
PROCESSES; every test of the family then includes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import need_increasing, need_range
from diffusion_jax.core.types import Array, Process

BETA = 300.0  # with a larger beta_max, alpha(1) underflows in float32
NEARLY = 1 - 1e-6  # the largest t_max of paths whose alpha is 0 at t = 1


def _need_times(process: Process, high: float = 1.0, *, above: bool = False) -> None:
    """Raises UserError unless 0 <= t_min < t_max <= high.

    above: t_min must be above 0, where sigma is 0.
    """
    name = f"schedules.{type(process).__name__}"
    need_range(f"{name}: t_min", process.t_min, 0, high, above=above)
    need_range(f"{name}: t_max", process.t_max, 0, high)
    need_increasing(name, t_min=process.t_min, t_max=process.t_max)


def _need_levels(process: Process) -> None:
    """Raises UserError unless 0 < sigma_min < sigma_max."""
    name = f"schedules.{type(process).__name__}"
    need_range(f"{name}: sigma_min", process.sigma_min, 0, 1e6, above=True)
    need_range(f"{name}: sigma_max", process.sigma_max, 0, 1e6, above=True)
    need_increasing(name, sigma_min=process.sigma_min, sigma_max=process.sigma_max)


@dataclass(frozen=True)
class VP:
    """The variance-preserving SDE with linear beta.

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 (Song et al. 2021, eq. 32-33).

    Attributes:
      beta_min: beta at t = 0.
      beta_max: beta at t = 1.
      t_min: the time of the data end.
      t_max: the time of the noise end.

    Raises:
      UserError: for a number out of its range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        name = f"schedules.{type(self).__name__}"
        need_range(f"{name}: beta_min", self.beta_min, 0, BETA)
        need_range(
            f"{name}: beta_max", self.beta_max, self.beta_min, BETA, above=self.beta_min == 0
        )
        _need_times(self, above=True)

    def log_alpha(self, t: Array) -> Array:
        """Returns log alpha = -B(t) / 2.

        Args:
          t: times in [0, 1], of any shape.

        Returns:
          log alpha, of t's shape, at most 0.
        """
        return -0.5 * t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))


@dataclass(frozen=True)
class SubVP(VP):
    """The sub-VP SDE: VP's alpha and sigma = 1 - alpha^2, less than VP's at every t."""

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return -jnp.expm1(2 * self.log_alpha(t))


@dataclass(frozen=True)
class VE:
    """The variance-exploding SDE: geometric sigma, as in NCSN's noise levels.

    sigma_max should be near the largest distance between two examples (Song & Ermon 2020, technique
    1), and both ends scale with the data: for 32x32 color images in [-1, 1] they are 0.02 and 100
    (Karras et al. 2022, table 1), which the presets in configs/ use or scale by that rule. The
    defaults are those of Song et al. 2021 for images in [0, 1].

    Attributes:
      sigma_min: sigma at t = 0.
      sigma_max: sigma at t = 1.
      t_min: the time of the data end.
      t_max: the time of the noise end.

    Raises:
      UserError: for a number out of its range.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        _need_levels(self)
        _need_times(self)

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return self.sigma_min * jnp.exp(t * math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class EDM:
    """EDM's path: time is the noise level in units of sigma_max.

    Euler's and Heun's methods in t are therefore EDM's own (Karras et al. 2022).

    Attributes:
      sigma_min: sigma at t_min = sigma_min / sigma_max.
      sigma_max: sigma at t = 1.
      t_max: the time of the noise end.

    Raises:
      UserError: for a number out of its range.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_max: float = 1.0

    def __post_init__(self):
        _need_levels(self)
        _need_times(self)

    @property
    def t_min(self) -> float:
        """The time of the data end."""
        return self.sigma_min / self.sigma_max

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return self.sigma_max * t


@dataclass(frozen=True)
class Cosine:
    """The cosine path on the unit circle (Nichol & Dhariwal 2021, eq. 17).

    t_max is below 1, because alpha(1) = 0 and eps no longer determines x0 there.

    Attributes:
      t_min: the time of the data end, above 0.
      t_max: the time of the noise end, below 1.

    Raises:
      UserError: for a number out of its range.
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self):
        _need_times(self, above=True, high=NEARLY)

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.cos(0.5 * math.pi * t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return jnp.sin(0.5 * math.pi * t)


@dataclass(frozen=True)
class TrigFlow:
    """The circle of sCM (Lu & Song 2025): every x_t has the data's own standard deviation.

    The ends are EDM's 0.002 and 80 for sigma_data = 0.5. The F of parameterization.edm(sigma_data)
    is minus the paper's F_theta: x0 = cos x_t + sigma_data sin F.

    Attributes:
      sigma_data: standard deviation of the data.
      t_min: the time of the data end.
      t_max: the time of the noise end.

    Raises:
      UserError: for a number out of its range.
    """

    sigma_data: float = 0.5
    t_min: float = 2.5e-3
    t_max: float = 0.996

    def __post_init__(self):
        need_range("schedules.TrigFlow: sigma_data", self.sigma_data, 0, 1e4, above=True)
        _need_times(self, above=True, high=NEARLY)

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.cos(0.5 * math.pi * t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return self.sigma_data * jnp.sin(0.5 * math.pi * t)


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path of flow matching, x_t = (1 - t) x0 + t noise_scale eps.

    t_max is below 1, because alpha(1) = 0, as in Cosine.

    Attributes:
      t_min: the time of the data end, above 0.
      t_max: the time of the noise end, below 1.
      noise_scale: standard deviation of the noise; 2 for images of 512 pixels in Li & He 2025.

    Raises:
      UserError: for a number out of its range.
    """

    t_min: float = 1e-3
    t_max: float = 0.999
    noise_scale: float = 1.0

    def __post_init__(self):
        _need_times(self, above=True, high=1 - 2.0**-23)  # 1 - t is exact in float32
        need_range("schedules.RectifiedFlow: noise_scale", self.noise_scale, 0, 1e4, above=True)

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return 1 - t

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        t = jnp.asarray(t)
        return t if self.noise_scale == 1 else self.noise_scale * t


@dataclass(frozen=True)
class VDM:
    """The variance-preserving path whose log-SNR falls linearly (Kingma et al. 2021, appendix H).

    alpha^2 = sigmoid(-gamma) and sigma^2 = sigmoid(gamma) with gamma = -logsnr = gamma_min +
    (gamma_max - gamma_min) t. The defaults are those of the paper's models of 8-bit images.

    Attributes:
      gamma_min: gamma at t = 0.
      gamma_max: gamma at t = 1.

    Raises:
      UserError: for a number out of its range.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self):
        for name in ("gamma_min", "gamma_max"):
            need_range(f"schedules.VDM: {name}", getattr(self, name), -40, 40)
        need_increasing("schedules.VDM", gamma_min=self.gamma_min, gamma_max=self.gamma_max)

    def _gamma(self, t: Array) -> Array:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self._gamma(t)))

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self._gamma(t)))


@dataclass(frozen=True)
class Shifted:
    """`base` with more noise, for larger images: sigma / alpha times `shift` at every t.

    On a variance-preserving base (Cosine, VP) this is simple diffusion's lam(t) + 2 log(1 / shift);
    on RectifiedFlow it is the timestep shift of Stable Diffusion 3 (Esser et al. 2024, eq. 23).

    Attributes:
      base: the process.
      shift: side of the images / side of the images that `base` suits.
      norm: p of the pair's normalization: alpha^p + sigma^p is that of the base. 2 on
        variance-preserving paths, 1 on a flow.

    Raises:
      UserError: for a number out of its range.
    """

    base: Process = Cosine()
    shift: float = 2.0
    norm: float = 2.0

    def __post_init__(self):
        need_range("schedules.Shifted: shift", self.shift, 0, 1e4, above=True)
        need_range("schedules.Shifted: norm", self.norm, 0, 16, above=True)

    @property
    def t_min(self) -> float:
        """The time of the data end."""
        return self.base.t_min

    @property
    def t_max(self) -> float:
        """The time of the noise end."""
        return self.base.t_max

    def _rescale(self, t: Array) -> Array:
        a, b, p = self.base.alpha(t), self.base.sigma(t), self.norm
        return ((a**p + b**p) / (a**p + (self.shift * b) ** p)) ** (1 / p)

    def alpha(self, t: Array) -> Array:
        """The factor of x0 at time t."""
        return self.base.alpha(t) * self._rescale(t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps at time t."""
        return self.shift * self.base.sigma(t) * self._rescale(t)


# The members of the family, which a config may name.
PROCESSES = (VP, SubVP, VE, EDM, Cosine, TrigFlow, RectifiedFlow, VDM, Shifted)
