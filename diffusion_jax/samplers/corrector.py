"""Predictor-corrector sampling (Song et al. 2021, sec. 4.2, algorithms 1-5).

After each move of a solver, Langevin steps at the new time s move x toward the law of x_s. A
corrector can follow any sampler: with_corrector(ode.euler(), langevin()).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.core import arrays
from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import sde
from diffusion_jax.samplers.base import Sampler


class Corrector(NamedTuple):
    """Moves x at a fixed time toward the law of x at that time.

    Attributes:
      step: step(noise, x, t, s, denoise, process, cond) -> x at time s, which was reached from t.
      nfe: number of network evaluations per step.
    """

    step: Callable[..., Array]
    nfe: int


def with_corrector(sampler: Sampler, corrector: Corrector) -> Sampler:
    """Returns a sampler with a corrector after each of its moves, at the time that the move led to.

    Args:
      sampler: makes the moves.
      corrector: moves x at a fixed time; its evaluations add to those of the sampler.
    """

    def step(noise, x, memory, t, s, denoise, process, cond):
        x, memory = sampler.step(noise, x, memory, t, s, denoise, process, cond)
        return corrector.step(noise, x, t, s, denoise, process, cond), memory

    nfe = sampler.nfe + corrector.nfe
    return sampler._replace(step=step, nfe=nfe, shifts_mean=False)


def _langevin(name: str, snr: float, steps: int, size: Callable[..., Array]) -> Corrector:
    """Returns the corrector x + size score + sqrt(2 size) z, made `steps` times.

    size(process, score, z, t, s) is a scalar or (B,).
    """
    need_ranges(f"corrector.{name}", snr=(snr, 1e-6, 100), steps=(steps, 1, 10_000))

    def step(noise, x, t, s, denoise, process, cond):
        for i in range(steps):
            z, score = noise.extra(i), gaussian.score(process, denoise(x, s, cond), s)
            h = expand(size(process, score, z, t, s), x)
            x = x + h * score + jnp.sqrt(2 * h) * z
        return x

    return Corrector(step, steps)


def langevin(snr: float = 0.16, steps: int = 1) -> Corrector:
    """Langevin steps of size 2 r^2 (snr |z| / |score|)^2 (Song et al. 2021, algorithms 4 and 5).

    r = alpha_t / alpha_s of the move before. The norms are each image's own, where Song et al.'s
    code averages them over the batch, so an image does not depend on the others in its batch.

    Args:
      snr: signal-to-noise ratio of a step, above 0.
      steps: number of Langevin steps after each move, each with one network evaluation.

    Raises:
      UserError: for an argument out of its range.
    """

    def size(process, score, z, t, s):
        norms = [jnp.sqrt(arrays.sum_per_example(v**2)) for v in (z, score)]
        return 2 * (gaussian.transition(process, t, s)[0] * snr * norms[0] / norms[1]) ** 2

    return _langevin("langevin", snr, steps, size)


def annealed_langevin(snr: float = 0.16, steps: int = 1) -> Corrector:
    """Annealed Langevin steps of size 2 r^2 (snr sigma_s)^2 (Song & Ermon 2019, algorithm 1).

    r = alpha_t / alpha_s of the move before.

    Args:
      snr: signal-to-noise ratio of a step, above 0.
      steps: number of Langevin steps after each move, each with one network evaluation.

    Raises:
      UserError: for an argument out of its range.
    """

    def size(process, score, z, t, s):
        return 2 * (gaussian.transition(process, t, s)[0] * snr * process.sigma(s)) ** 2

    return _langevin("annealed_langevin", snr, steps, size)


def predictor_corrector(snr: float = 0.16, steps: int = 1) -> Sampler:
    """The PC sampler of Song et al. 2021: reverse diffusion, then Langevin.

    Args:
      snr: signal-to-noise ratio of a Langevin step, above 0.
      steps: number of Langevin steps after each move.

    Raises:
      UserError: for an argument out of its range.
    """
    return with_corrector(sde.reverse_diffusion(), langevin(snr, steps))


def ncsn(snr: float = 0.16, steps: int = 5) -> Sampler:
    """NCSN's annealed Langevin dynamics (Song & Ermon 2019, algorithm 1).

    There is nothing but Langevin steps at every noise level; between levels x / alpha stays as it
    is.

    Args:
      snr: signal-to-noise ratio of a Langevin step, above 0.
      steps: number of Langevin steps at every level.

    Raises:
      UserError: for an argument out of its range.
    """

    def stay(noise, x, memory, t, s, denoise, process, cond):
        return process.alpha(s) / process.alpha(t) * x, memory

    # its levels are geometric
    return with_corrector(
        Sampler(lambda x, ts: (), stay, nfe=0, grid="uniform_logsnr()"),
        annealed_langevin(snr, steps),
    )


# The members of the family, which a config may name.
SAMPLERS = (with_corrector, predictor_corrector, ncsn)

CORRECTORS = (langevin, annealed_langevin)
