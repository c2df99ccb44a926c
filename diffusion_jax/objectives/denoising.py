"""The denoising objective and its presets.

    L = E_{t, eps} [ w(t) |eps - eps_hat(x_t, t)|^2 ],    the norm being a mean over dimensions

DDPM, score matching, NCSN, EDM and flow matching differ only in the law of t and in w(t). The
prediction type belongs to the network (denoisers/parameterization.py): every preset trains every
network under every process.
"""

from __future__ import annotations

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.arrays import mean_per_example
from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Noised, Process
from diffusion_jax.objectives import times, weighting
from diffusion_jax.objectives.base import Objective, per_example
from diffusion_jax.processes.gaussian import corrupt


def denoising(
    process: Process,
    time: times.TimeLaw = times.uniform(),
    weight: weighting.Weighting = weighting.unit(),
) -> Objective:
    """The denoising objective for any law of t and any weighting.

    Args:
      process: the process that adds noise.
      time: the law of t, (process, keys) -> t.
      weight: the weighting w, (process, t) -> w(t), of the mean squared error of eps.

    Returns:
      The objective.
    """

    @per_example
    def draw(keys: Key, x0: Array) -> Noised:
        t = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return corrupt(process, x0, eps, t)

    def loss(denoise: Denoise, noised: Noised, cond: Cond = None) -> Array:
        error = denoise(noised.x_t, noised.t, cond).eps - noised.eps
        return weight(process, noised.t) * mean_per_example(error**2)

    return Objective(draw, loss)


def ddpm(process: Process, steps: int = 0) -> Objective:
    """DDPM's L_simple (Ho et al. 2020, eq. 14).

    Args:
      process: the process that adds noise.
      steps: number of grid points that t is drawn from, 1000 for a chain of 1000 steps; 0 is
        continuous t.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("denoising.ddpm", steps=(steps, 0, 100_000))
    return denoising(process, times.grid(steps) if steps else times.uniform(), weighting.unit())


def dsm(process: Process, likelihood: bool = False) -> Objective:
    """Denoising score matching over an SDE (Song et al. 2021, eq. 7) with lambda = sigma^2.

    Args:
      process: the process that adds noise.
      likelihood: uses lambda = g^2 instead, for maximum likelihood.

    Returns:
      The objective.
    """
    weight = weighting.likelihood() if likelihood else weighting.unit()
    return denoising(process, times.uniform(), weight)


def ncsn(process: Process, levels: int = 232) -> Objective:
    """NCSN's objective (Song & Ermon 2019, eq. 6): discrete levels with lambda = sigma^2.

    The levels are geometric on VE.

    Args:
      process: the process that adds noise.
      levels: number of levels; 232 is that of the authors' 2020 paper for 32x32 images.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("denoising.ncsn", levels=(levels, 2, 100_000))
    return denoising(process, times.grid(levels), weighting.unit())


def edm(
    process: Process, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5
) -> Objective:
    """EDM's objective (Karras et al. 2022, eq. 8 and table 1): log-normal sigma and edm weighting.

    Args:
      process: the process that adds noise.
      p_mean: mean of log(sigma / alpha).
      p_std: standard deviation of log(sigma / alpha).
      sigma_data: standard deviation of the data.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges(
        "denoising.edm",
        p_mean=(p_mean, -20, 20),
        p_std=(p_std, 1e-6, 20),
        sigma_data=(sigma_data, 1e-6, 1e4),
    )
    return denoising(process, times.lognormal(p_mean, p_std), weighting.edm(sigma_data))


def flow_matching(process: Process, time: times.TimeLaw = times.uniform()) -> Objective:
    """Conditional flow matching (Lipman et al. 2023, eq. 14): the error of the path's velocity.

    Args:
      process: the process that adds noise.
      time: the law of t, (process, keys) -> t.

    Returns:
      The objective.
    """
    return denoising(process, time, weighting.velocity())


# The members of the family, which a config may name.
OBJECTIVES = (denoising, ddpm, dsm, ncsn, edm, flow_matching)
