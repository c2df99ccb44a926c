"""Samplers that walk the chain backwards: DDPM's ancestral sampling and DDIM.

Improved DDPM's respacing (Nichol & Dhariwal 2021, sec. 4) is ddpm() on a shorter grid, such as
grids.linspace: the variances are those between the grid's own times.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, need_range, unknown
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers.base import Sampler, memoryless


def ddpm(variance: str = "small") -> Sampler:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2), on any grid.

    x_s ~ N(mean of q(x_s | x_t, x0-hat), variance). It is the sampler of guidance.mean_shift, whose
    shift times the variance is added to the mean (Dhariwal & Nichol 2021, algorithm 1).

    Args:
      variance: 'small' is beta-tilde, 'large' is beta (Ho et al. 2020, sec. 3.2); 'learned' needs a
        network with learned variance (Nichol & Dhariwal 2021, eq. 15).

    Raises:
      UserError: for another name, or for 'learned' with a network that has no learned variance.
    """
    if variance not in ("small", "large", "learned"):
        raise unknown("variance of ancestral.ddpm", variance, ("small", "large", "learned"))

    def step(noise, x, t, s, denoise, process, cond):
        prediction = denoise(x, t, cond)
        mean, beta_tilde = gaussian.posterior(process, x, prediction.x0, t, s)
        if variance == "small":
            std = jnp.sqrt(beta_tilde)
        elif variance == "large":
            std = jnp.sqrt(gaussian.transition(process, t, s)[1])
        elif prediction.nu is None:
            raise UserError(
                "ancestral.ddpm(variance='learned') needs a network that learns it: "
                "set config.model.learn_variance=True"
            )
        else:
            std = jnp.exp(0.5 * gaussian.learned_log_variance(process, prediction.nu, t, s))
        if prediction.mean_shift is not None:
            mean = mean + std**2 * prediction.mean_shift
        return mean + std * noise.path(t, s)

    return memoryless(step)._replace(shifts_mean=True)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song, Meng & Ermon 2021, eq. 12 and 16).

    x_s = alpha_s x0-hat + sqrt(sigma_s^2 - var) eps-hat + sqrt(var) z, with var = min(eta^2
    beta-tilde, sigma_s^2). eta = 0 is deterministic: Euler's method in (x / alpha, sigma / alpha).
    eta = 1 is ancestral.ddpm('small').

    Args:
      eta: amount of noise, 0 or above. Above 1 there is more noise than in ancestral sampling, up
        to the whole of sigma_s^2, beyond which DDIM is not defined; k-diffusion has the same limit.

    Raises:
      UserError: if eta is negative or not finite.
    """
    return _ddim("ancestral.ddim", eta)


def _ddim(name: str, eta: float) -> Sampler:
    need_range(f"{name}: eta", eta, 0)

    def step(noise, x, t, s, denoise, process, cond):
        prediction = denoise(x, t, cond)
        # var / sigma_s^2
        fresh = -(eta**2) * jnp.expm1(gaussian.logsnr(process, t) - gaussian.logsnr(process, s))
        fresh = jnp.minimum(fresh, 1.0) if eta > 1 else fresh
        x = (
            process.alpha(s) * prediction.x0
            + process.sigma(s) * jnp.sqrt(1 - fresh) * prediction.eps
        )
        return x + process.sigma(s) * jnp.sqrt(fresh) * noise.path(t, s) if eta else x

    return memoryless(step)


def euler_ancestral(eta: float = 1.0) -> Sampler:
    """Euler ancestral (Katherine Crowson's k-diffusion): another name of DDIM(eta).

    In the frame (x / alpha, sigma / alpha) it is Euler down to sigma_down, then noise sigma_up,
    with sigma_up = min(sigma_s, eta sigma_s sqrt(sigma_t^2 - sigma_s^2) / sigma_t) and sigma_down^2
    = sigma_s^2 - sigma_up^2.

    Args:
      eta: amount of noise, 0 or above, with the limit of `ddim` above 1.

    Raises:
      UserError: if eta is negative or not finite.
    """
    return _ddim("ancestral.euler_ancestral", eta)


# The members of the family, which a config may name.
SAMPLERS = (ddpm, ddim, euler_ancestral)
