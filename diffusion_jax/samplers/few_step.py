"""Samplers of networks that jump: from noise to data in one, two or four evaluations.

A consistency function is a denoiser whose x0-hat is where the trajectory ends, and an average velocity one whose
(x0-hat, eps-hat) leads to the trajectory's point at another time (objectives/consistency.py, meanflow.py). So `sample` on a
grid of one time is one-step generation by either. A grid of a few times ends before the data: grids.few_step, grids.levels.
"""

from __future__ import annotations

from diffusion_jax.samplers.base import Sampler, memoryless


def multistep() -> Sampler:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): x_s = alpha_s x0-hat + sigma_s z, to the data and back.

    On the grid of chosen times it is the stochastic iterative sampler. The output has the data's law whatever the times, where
    x0-hat is exact.
    """

    def step(noise, x, t, s, denoise, process):
        return process.alpha(s) * denoise(x, t).x0 + process.sigma(s) * noise.path(t, s)

    return memoryless(step)


def jump() -> Sampler:
    """MeanFlow's sampler (Geng et al. 2025, eq. 12): x_s = alpha_s x0-hat + sigma_s eps-hat, by the prediction that is told s.

    On rectified flow that is x_s = x_t + (s - t) u(x_t, t, s). With a denoiser, which ignores s, it is DDIM.
    """

    def step(noise, x, t, s, denoise, process):
        x0, eps, _ = denoise(x, t, to=s)
        return process.alpha(s) * x0 + process.sigma(s) * eps

    return memoryless(step)
