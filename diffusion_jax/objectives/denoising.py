"""The denoising objective and its famous presets.

    L = E_{t, eps} [ w(t) |eps - eps_hat(x_t, t)|^2 ]     (mean over dimensions)

DDPM, score matching, NCSN, EDM and flow matching differ in the law of t and in w(t), and in nothing
else. The prediction type is the network's affair (parameterization.py): any preset trains any
network under any process.
"""

from __future__ import annotations

from diffusion_jax import arrays, streams
from diffusion_jax.arrays import mean_per_example
from diffusion_jax.errors import need_ranges
from diffusion_jax.objectives import times, weighting
from diffusion_jax.objectives.base import Objective, per_example
from diffusion_jax.processes.gaussian import corrupt
from diffusion_jax.types import Process


def denoising(
    process: Process,
    time: times.TimeLaw = times.uniform(),
    weight: weighting.Weighting = weighting.unit(),
) -> Objective:
    """The objective above, for any law of t and any weighting."""

    @per_example
    def draw(keys, x0):
        t = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        return corrupt(
            process, x0, arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0), t
        )

    def loss(denoise, noised, cond=None):
        error = denoise(noised.x_t, noised.t, cond).eps - noised.eps
        return weight(process, noised.t) * mean_per_example(error**2)

    return Objective(draw, loss)


def ddpm(process: Process, steps: int = 0) -> Objective:
    """L_simple (Ho et al. 2020, eq. 14). `steps`: t on that many grid points (1000 for a 1000-step
    chain); 0: continuous t.
    """
    need_ranges("denoising.ddpm", steps=(steps, 0, 100_000))
    return denoising(process, times.grid(steps) if steps else times.uniform(), weighting.unit())


def dsm(process: Process, likelihood: bool = False) -> Objective:
    """Denoising score matching over an SDE (Song et al. 2021, eq. 7) with lambda = sigma^2, or g^2
    for maximum likelihood.
    """
    return denoising(
        process, times.uniform(), weighting.likelihood() if likelihood else weighting.unit()
    )


def ncsn(process: Process, levels: int = 232) -> Objective:
    """NCSN (Song & Ermon 2019, eq. 6; 232 levels: their 2020 follow-up for 32x32): discrete levels,
    geometric on VE, lambda = sigma^2.
    """
    need_ranges("denoising.ncsn", levels=(levels, 2, 100_000))
    return denoising(process, times.grid(levels), weighting.unit())


def edm(
    process: Process, p_mean: float = -1.2, p_std: float = 1.2, sigma_data: float = 0.5
) -> Objective:
    """Karras et al. 2022, eq. 8 and table 1: log-normal sigma, weighted to unit error of the
    preconditioned network.
    """
    need_ranges(
        "denoising.edm",
        p_mean=(p_mean, -20, 20),
        p_std=(p_std, 1e-6, 20),
        sigma_data=(sigma_data, 1e-6, 1e4),
    )
    return denoising(process, times.lognormal(p_mean, p_std), weighting.edm(sigma_data))


def flow_matching(process: Process, time: times.TimeLaw = times.uniform()) -> Objective:
    """Conditional flow matching (Lipman et al. 2023, eq. 14): the error of the path's velocity."""
    return denoising(process, time, weighting.velocity())


# The members of the family, which a config may name.
OBJECTIVES = (denoising, ddpm, dsm, ncsn, edm, flow_matching)
