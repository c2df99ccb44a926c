"""The probability-flow ODE with steps chosen by an error estimate: diffrax's Runge-Kutta pairs under a PID controller, inside jit.

In the frame y = x / alpha with lam = log(sigma / alpha) as clock, dy/dlam = (sigma / alpha) eps-hat, where even a table of betas has no kink. Every
image has its own steps, so it is the same whatever its neighbours; the batch runs until the last image is done. The grid is its two
ends (more times are stops on the way); rtol and atol decide the NFE, which `sample(..., count=True)` reports for each image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from diffusion_jax.errors import UserError
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.exponential import log_ratio
from diffusion_jax.types import Array

MAX_STEPS = 4096


def _field(denoise, process, x: Array):
    """(dy/dlam of one image, the arrays that it closes over): under vmap it is one call of denoise on the whole batch.

    The denoiser holds conditions of the whole batch, so it cannot be mapped over; and arrays that a loop's body closes over must be handed to it.
    """

    def slope(y, lam):
        t = gaussian.time_of_logsnr(process, -2 * lam)
        scale = jnp.reshape(process.alpha(t), (-1, *(1,) * (y.ndim - 1)))
        return jnp.exp(lam).reshape(scale.shape) * denoise(scale * y, t).eps

    traced = jax.make_jaxpr(slope)(x, jnp.zeros(len(x), x.dtype))

    @custom_vmap
    def one(y, lam, held):
        return jnp.zeros_like(y)  # never computed: this is only ever mapped

    @one.def_vmap
    def batch(size, mapped, y, lam, held):
        return jax.core.eval_jaxpr(traced.jaxpr, held, y, jnp.broadcast_to(lam, (size,)))[0], True

    return one, traced.consts


def _adaptive(solver: str, stages: int, rtol: float, atol: float) -> Sampler:
    if min(rtol, atol) <= 0:
        raise UserError(f"adaptive.{solver.lower()}: rtol and atol must be above 0; got {rtol} and {atol}")

    def step(noise, x, spent, t, s, denoise, process):
        import diffrax

        field, held = _field(denoise, process, x)
        low, high = -log_ratio(process, t), -log_ratio(process, s)

        def solve(y):
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda lam, y, held: field(y, lam, held)), getattr(diffrax, solver)(), low, high, None, y, held,
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol), max_steps=MAX_STEPS, throw=False)  # fmt: skip
            done = found.result == diffrax.RESULTS.successful
            return jnp.where(done, found.ys[-1], jnp.nan), found.stats["num_steps"]

        y, steps = jax.vmap(solve)(x / process.alpha(t))
        return process.alpha(s) * y, spent + stages * steps + 1  # and the first slope

    return Sampler(lambda x, ts: jnp.zeros(len(x), jnp.int32), step, nfe=0, spent=lambda spent: spent)


def tsit5(rtol: float = 1e-3, atol: float = 1e-3) -> Sampler:
    """Tsitouras's 5(4) pair (Tsitouras 2011): six evaluations a step."""
    return _adaptive("Tsit5", 6, rtol, atol)


def dopri5(rtol: float = 1e-3, atol: float = 1e-3) -> Sampler:
    """Dormand and Prince's 5(4) pair (1980), the RK45 of Song et al. 2021: six evaluations a step."""
    return _adaptive("Dopri5", 6, rtol, atol)


def dopri8(rtol: float = 1e-5, atol: float = 1e-5) -> Sampler:
    """Dormand and Prince's 8(7) pair: thirteen evaluations a step, for tight tolerances."""
    return _adaptive("Dopri8", 13, rtol, atol)
