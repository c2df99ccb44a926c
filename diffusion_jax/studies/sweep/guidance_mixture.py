"""What guidance does to a mixture of Gaussians whose denoisers are exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array, Denoise, Process
from diffusion_jax.denoisers import guidance
from diffusion_jax.processes import schedules
from diffusion_jax.report import pictures
from diffusion_jax.samplers import base, grids, ode
from diffusion_jax.targets import laws


class Setting(NamedTuple):
    """Three classes of two Gaussians each, which overlap in the plane.

    Attributes:
      mixture: the mixture.
      labels: (6,) the class of each component.
      process: the diffusion process.
    """

    mixture: laws.Mixture
    labels: np.ndarray
    process: Process


def draw(scales: Sequence[float], path: Path, count: int = 10_000) -> None:
    """Draw the samples of one class by several guidance strategies at every scale.

    Each tile states how probable the class is at its samples, and their spread relative to the
    class's own.

    Args:
      scales: the scales of guidance; 1 is none.
      path: the picture to write.
      count: samples in a tile.
    """
    angle = 2 * np.pi * np.arange(6) / 6
    mixture = laws.mixture(np.ones(6), np.stack([np.cos(angle), np.sin(angle)], 1), 0.28)
    setting = Setting(mixture, np.array([0, 0, 1, 1, 2, 2]), schedules.EDM(sigma_max=20.0))
    own = laws.draw_mixture(laws.Mixture(*(part[:2] for part in mixture)), jax.random.key(0), count)
    tiles, captions = {}, {}
    for name, make in _guides(setting).items():
        sample = _sampler(setting, make, count)
        for scale in scales:
            x, probability = sample(scale)
            tiles[name, scale] = pictures.density(np.asarray(x), ((-2, -2), (2, 2)), side=170)
            captions[name, scale] = (
                f"p(class | x) {100 * probability:.0f} %\n"
                f"spread {_spread(x) / _spread(own):.2f} of the class's"
            )
    pictures.strips(
        tiles,
        path,
        captions=captions,
        columns={scale: f"scale {scale:g}" for scale in scales},
        title="One class of three, by exact denoisers",
    )


def _guides(setting: Setting) -> Mapping[str, Callable[[Any], Denoise]]:
    """The name of each guidance strategy -> (scale -> the guided denoiser)."""
    mixture, labels, process = setting
    denoise = laws.denoise_mixture(mixture, process, labels)
    wide = mixture._replace(variances=4 * mixture.variances)  # as a model that has trained less
    worse = laws.denoise_mixture(wide, process, labels)

    def no_label(cond: dict[str, Array]) -> dict[str, Array]:
        return {"label": jnp.full_like(cond["label"], -1)}

    def cfg(scale: Any) -> Denoise:
        return guidance.cfg(denoise, scale, no_label)

    def interval(scale: Any) -> Denoise:
        return guidance.interval(cfg(scale), denoise, process, 0.2, 1.0)

    def autoguidance(scale: Any) -> Denoise:
        return guidance.autoguidance(denoise, worse, scale)

    return {"cfg": cfg, "cfg, σ / α in (0.2, 1]": interval, "autoguidance": autoguidance}


def _sampler(
    setting: Setting, make: Callable[[Any], Denoise], count: int
) -> Callable[[Any], tuple[Array, Array]]:
    """Scale -> (samples (count, 2) of class 0, the mean of p(class 0 | x) over them)."""
    mixture, labels, process = setting
    key, ts = jax.random.key(0), grids.karras(process, 32)
    cond, t = {"label": jnp.zeros(count, jnp.int32)}, jnp.float32(process.t_min)

    @jax.jit
    def sample(scale: Any) -> tuple[Array, Array]:
        x = base.start(process, key, (count, 2))
        x = base.sample(ode.edm_heun(), make(scale), process, key, x, ts, cond).x0
        joint = laws.log_density_mixture(mixture, process, x, t, labels, cond)
        return x, jnp.mean(jnp.exp(joint - laws.log_density_mixture(mixture, process, x, t)))

    return sample


def _spread(x: Array) -> np.ndarray:
    return np.sqrt(np.var(np.asarray(x), 0).sum())
