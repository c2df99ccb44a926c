"""What the network regresses. A parameterization is a pair (a, b): the network's output is F = a x0
+ b eps.

With x_t = alpha x0 + sigma eps this is a 2x2 linear system, solved once for every parameterization
and every process:

    x0  = (b x_t - sigma F) / det,    eps = (alpha F - a x_t) / det,    det = alpha b - sigma a.

    name      a                               b                       F is
    x0        1                               0                       the data
    eps       0                               1                       the noise                     (Ho et al. 2020)
    v         -sigma                          alpha                   alpha eps - sigma x0          (Salimans & Ho 2022)
    velocity  alpha'                          sigma'                  dx/dt along the path          (Lipman et al. 2023)
    score     0                               -1 / sigma              grad log p(x_t | x0)          (Song & Ermon 2019)
    edm       (1 - c_skip alpha) / c_out      -c_skip sigma / c_out   unit variance at every t      (Karras et al. 2022, sec. 5)
    consistency, the same by the c_skip and c_out of Song et al. 2023, appendix C: at t_min x0 is x_t / alpha, whatever F

The same pair defines how the network is fed: x_in = c_in x_t has unit variance for data of standard
deviation `sigma_data`, and c_noise = log(sigma / alpha) / 4 names the noise level by what it is
rather than by a process's clock, so that one network means the same thing under VP, EDM or a flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypedDict, Unpack

import jax.numpy as jnp

from diffusion_jax.arrays import expand
from diffusion_jax.errors import UserError, need_ranges, unknown
from diffusion_jax.processes import gaussian
from diffusion_jax.types import Apply, Array, Cond, Denoise, Params, Prediction, Process


class Parameterization(NamedTuple):
    """coefficients(process, t) -> (a, b), of t's shape; encode(process, x_t, t) -> (x_in, c_noise),
    what the network is fed.

    residual(process) -> the noise level sigma / alpha at which x0-hat is x_t / alpha whatever the
    network says, if that is not 0: the boundary of a consistency function, whose x0-hat still has
    that noise. None: x0-hat is an estimate of the data.
    """

    coefficients: Callable[[Process, Array], tuple[Array, Array]]
    encode: Callable[[Process, Array, Array], tuple[Array, Array]]
    residual: Callable[[Process], Array] | None = None


def target(
    parameterization: Parameterization, process: Process, prediction: Prediction, t: Array
) -> Array:
    """F = a x0 + b eps, what a perfect network would output. (B, ...)."""
    a, b = parameterization.coefficients(process, t)
    return expand(a, prediction.x0) * prediction.x0 + expand(b, prediction.eps) * prediction.eps


def decode(
    parameterization: Parameterization, process: Process, F: Array, x_t: Array, t: Array
) -> Prediction:
    """Solve the 2x2 system above: the network's output and x_t to (x0, eps), both float32 of x_t's
    shape.
    """
    a, b = (expand(c, x_t) for c in parameterization.coefficients(process, t))
    alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
    det = alpha * b - sigma * a
    return Prediction((b * x_t - sigma * F) / det, (alpha * F - a * x_t) / det)


def denoiser(
    apply: Apply, params: Params, parameterization: Parameterization, process: Process, **kwargs
) -> Denoise:
    """The network as a Denoise: encode, apply(params, x_in, c_noise, cond, **kwargs), decode.

    t may be scalar or (B,). A network that outputs twice x_t's channels has learned the reverse
    variance too: the second half is nu of the Prediction (Nichol & Dhariwal 2021).

    cond['to'] (B,), where given, is a time s <= t at which the move from x_t will end (networks
    with second_time). The network is given sigma / (alpha + sigma) there, a flow's own time under
    any process; not given, it takes that for 0, the data.
    """

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        if isinstance(cond, dict) and "to" in cond:
            cond = cond | {
                "to": process.sigma(cond["to"])
                / (process.alpha(cond["to"]) + process.sigma(cond["to"]))
            }
        F = apply(params, *parameterization.encode(process, x_t, t), cond, **kwargs).astype(
            x_t.dtype
        )
        residual = parameterization.residual and jnp.broadcast_to(
            parameterization.residual(process), t.shape
        )
        if F.shape == x_t.shape:
            return decode(parameterization, process, F, x_t, t)._replace(residual=residual)
        if F.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
            raise UserError(
                f"the network maps {x_t.shape} to {F.shape}; its output must have the same channels, or twice as many"
            )
        F, nu = jnp.split(F, 2, axis=-1)
        return decode(parameterization, process, F, x_t, t)._replace(nu=nu, residual=residual)

    return denoise


def change_process(denoise: Denoise, theirs: Process, process: Process) -> Denoise:
    """A denoiser of one process, under another: asked at the time of the same log-SNR, of x_t on
    their scale.
    """

    def asked(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        time = gaussian.time_of_logsnr(theirs, gaussian.logsnr(process, t))
        scale = jnp.hypot(theirs.alpha(time), theirs.sigma(time)) / jnp.hypot(
            process.alpha(t), process.sigma(t)
        )
        return denoise(expand(scale, x_t) * x_t, time, cond)

    return denoise if theirs == process else asked


def same_network(
    parameterization: Parameterization, theirs: Process, process: Process, tolerance: float = 1e-2
) -> bool:
    """Whether a network trained under `theirs` means the same under `process`, at every log-SNR
    that both have.

    It does if its inputs (c_in x_t, c_noise) and its target's pair (a, b) are the same at equal
    log-SNR for the same x0 and eps: so do networks that predict x0, eps or EDM's F and are given
    log(sigma / alpha), and not those that are given the process's own time, or that predict v or
    the velocity of a process with another scale.
    """
    ends = [
        [gaussian.logsnr(one, jnp.float32(t)) for t in (one.t_max, one.t_min)]
        for one in (theirs, process)
    ]
    low, high = (pick(*pair) for pick, pair in zip((jnp.maximum, jnp.minimum), zip(*ends)))
    if low >= high:
        return False
    lam = jnp.linspace(low, high, 9)[1:-1]

    def shown(one: Process) -> Array:
        t = gaussian.time_of_logsnr(one, lam)
        x_t = one.alpha(t) + one.sigma(t)  # of x0 = eps = 1
        x_in, c_noise = parameterization.encode(one, x_t, t)
        return jnp.stack(
            [x_in, c_noise, *(c * jnp.ones_like(t) for c in parameterization.coefficients(one, t))]
        )

    a, b = shown(theirs), shown(process)
    return bool(jnp.all(jnp.abs(a - b) <= tolerance * (jnp.abs(a) + jnp.abs(b)) + 1e-3))


# ---- encode: what the network is fed
class Encoding(TypedDict, total=False):
    """The arguments of `encoder`, which every parameterization takes too."""

    sigma_data: float
    noise_input: str
    input_scale: bool
    time_scale: float
    time_shift: float


def encoder(
    sigma_data: float = 1.0,
    noise_input: str = "logsnr",
    input_scale: bool = True,
    time_scale: float = 1.0,
    time_shift: float = 0.0,
):
    """encode(process, x_t, t) -> (c_in x_t, c_noise).

    c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2) (1 if not input_scale: the DDPM and NCSN
    checkpoints' own convention); c_noise = log(sigma / alpha) / 4 ('logsnr'; EDM's ln(sigma) / 4),
    or time_scale * t + time_shift ('time'; with the shift -0.001, 1000 c_noise is the step from 0
    to 999 of DDPM's checkpoints).
    """
    need_ranges(
        "encoder",
        sigma_data=(sigma_data, 1e-6, 1e4),
        time_scale=(time_scale, -1e9, 1e9),
        time_shift=(time_shift, -1e9, 1e9),
    )
    if noise_input not in ("logsnr", "time"):
        raise unknown("noise_input", noise_input, ("logsnr", "time"))

    def encode(process: Process, x_t: Array, t: Array) -> tuple[Array, Array]:
        c_noise = (
            -gaussian.logsnr(process, t) / 8
            if noise_input == "logsnr"
            else time_scale * t + time_shift
        )
        if not input_scale:
            return x_t, c_noise
        alpha, sigma = process.alpha(t), process.sigma(t)
        return x_t / expand(jnp.sqrt((alpha * sigma_data) ** 2 + sigma**2), x_t), c_noise

    return encode


# ---- the pairs
def x0(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts the data: (1, 0)."""
    return Parameterization(
        lambda process, t: (jnp.ones_like(t), jnp.zeros_like(t)), encoder(**encoding)
    )


def eps(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts the noise: (0, 1). Undetermined where alpha = 0, which every process's
    t_max avoids.
    """
    return Parameterization(
        lambda process, t: (jnp.zeros_like(t), jnp.ones_like(t)), encoder(**encoding)
    )


def v(**encoding: Unpack[Encoding]) -> Parameterization:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, sec. 4); det = alpha^2 + sigma^2, never small."""
    return Parameterization(
        lambda process, t: (-process.sigma(t), process.alpha(t)), encoder(**encoding)
    )


def velocity(**encoding: Unpack[Encoding]) -> Parameterization:
    """The path's own velocity alpha' x0 + sigma' eps, which flow matching regresses (eps - x0 for
    rectified flow).
    """

    def coefficients(process, t):
        return gaussian.derivative(process.alpha, t), gaussian.derivative(process.sigma, t)

    return Parameterization(coefficients, encoder(**encoding))


def score(**encoding: Unpack[Encoding]) -> Parameterization:
    """The score -eps / sigma (Song & Ermon 2019): (0, -1 / sigma)."""
    return Parameterization(
        lambda process, t: (jnp.zeros_like(t), -1 / process.sigma(t)), encoder(**encoding)
    )


def edm(sigma_data: float = 0.5, **encoding: Unpack[Encoding]) -> Parameterization:
    """EDM's preconditioning (Karras et al. 2022, table 1), for any alpha: x0 = c_skip x_t + c_out
    F.

    c_skip = alpha sd^2 / (alpha^2 sd^2 + sigma^2),  c_out = sigma sd / sqrt(alpha^2 sd^2 + sigma^2): F has unit variance at every t.
    """
    need_ranges("edm", sigma_data=(sigma_data, 1e-6, 1e4))

    def coefficients(process, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        total = (alpha * sigma_data) ** 2 + sigma**2
        c_skip, c_out = alpha * sigma_data**2 / total, sigma * sigma_data / jnp.sqrt(total)
        # 1 - c_skip alpha = sigma^2 / total, written so that nothing cancels near t = 0
        return sigma**2 / total / c_out, -c_skip * sigma / c_out

    return Parameterization(coefficients, encoder(sigma_data=sigma_data, **encoding))


def consistency(sigma_data: float = 0.5, **encoding: Unpack[Encoding]) -> Parameterization:
    """Consistency models' preconditioning (Song et al. 2023, appendix C), for any alpha: x0 =
    c_skip x_t / alpha + c_out F.

    u = sigma / alpha,  c_skip = sd^2 / (sd^2 + (u - u_min)^2),  c_out = sd (u - u_min) / sqrt(sd^2 + u^2): at t_min, where
    u = u_min, x0 is x_t / alpha, whatever F. So x0-hat has noise of level u_min, which few_step.multistep takes into account.
    """
    need_ranges("consistency", sigma_data=(sigma_data, 1e-6, 1e4))

    def boundary(process, dtype=jnp.float32):
        time = jnp.asarray(process.t_min, dtype)
        return process.sigma(time) / process.alpha(time)

    def coefficients(process, t):
        u, start = process.sigma(t) / process.alpha(t), boundary(process, jnp.result_type(t))
        rise = jnp.maximum(
            u - start, 1e-12
        )  # F says nothing at t_min, so the pair has a pole there
        total = sigma_data**2 + rise**2
        c_skip, c_out = sigma_data**2 / total, sigma_data * rise / jnp.sqrt(sigma_data**2 + u**2)
        return rise**2 / total / c_out, -c_skip * u / c_out

    return Parameterization(coefficients, encoder(sigma_data=sigma_data, **encoding), boundary)
