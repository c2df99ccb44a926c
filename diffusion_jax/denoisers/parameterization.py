"""What the network regresses: a parameterization is a pair (a, b), and F = a x0 + b eps.

F is the network's output. With x_t = alpha x0 + sigma eps this is a 2x2 linear system, solved once
for every parameterization and every process:

    x0  = (b x_t - sigma F) / det,    eps = (alpha F - a x_t) / det,    det = alpha b - sigma a.

    name         a                              b                      paper
    x0           1                              0
    eps          0                              1                      Ho et al. 2020
    eps_skip     -alpha                         1 - sigma              Kingma et al. 2021
    v            -sigma                         alpha                  Salimans & Ho 2022
    velocity     alpha'                         sigma'                 Lipman et al. 2023
    score        0                              -1 / sigma             Song & Ermon 2019
    edm          (1 - c_skip alpha) / c_out     -c_skip sigma / c_out  Karras et al. 2022, sec. 5
    consistency  as edm, with the c_skip and c_out of                  Song et al. 2023, appendix C

F is the data, the noise, eps - x_t, alpha eps - sigma x0, dx/dt along the path, grad log p(x_t |
x0), a target of unit variance at every t, and, for consistency, such that x0 is x_t / alpha at
t_min for every F.

A parameterization also holds the encoding of the network's inputs (denoisers/inputs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Apply, Array, Cond, Denoise, Params, Prediction, Process
from diffusion_jax.denoisers.inputs import Encode, Encoding, encoder
from diffusion_jax.processes import gaussian

END_TIME = "to"  # the entry of a condition that holds the time at which a move ends


class Parameterization(NamedTuple):
    """The regression target of a network, and its inputs.

    Attributes:
      coefficients: a function (process, t) -> (a, b), both of t's shape.
      encode: a function (process, x_t, t) -> (x_in, c_noise), the inputs of the network.
      residual: a function (process) -> the noise level sigma / alpha at which x0-hat is x_t / alpha
        for every F, if that level is not 0. It is the boundary of a consistency function, whose
        x0-hat still has noise of that level. None: x0-hat is an estimate of the data.
    """

    coefficients: Callable[[Process, Array], tuple[Array, Array]]
    encode: Encode
    residual: Callable[[Process], Array] | None = None


def target(
    parameterization: Parameterization, process: Process, prediction: Prediction, t: Array
) -> Array:
    """Computes F = a x0 + b eps, the output of a perfect network.

    Args:
      parameterization: the pair (a, b).
      process: the process of the prediction.
      prediction: x0 and eps, (B, ...).
      t: scalar or (B,).

    Returns:
      F, (B, ...).
    """
    a, b = parameterization.coefficients(process, t)
    return expand(a, prediction.x0) * prediction.x0 + expand(b, prediction.eps) * prediction.eps


def decode(
    parameterization: Parameterization, process: Process, F: Array, x_t: Array, t: Array
) -> Prediction:
    """Solves the 2x2 system above for (x0, eps).

    Args:
      parameterization: the pair (a, b).
      process: the process of x_t.
      F: the network's output, (B, ...).
      x_t: noised data, (B, ...).
      t: scalar or (B,).

    Returns:
      The prediction (x0, eps), both float32 of x_t's shape.
    """
    a, b = (expand(c, x_t) for c in parameterization.coefficients(process, t))
    alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
    det = alpha * b - sigma * a
    return Prediction((b * x_t - sigma * F) / det, (alpha * F - a * x_t) / det)


def has_end_time(cond: Cond) -> bool:
    """Whether a condition says where the move from x_t ends.

    Args:
      cond: a dict of arrays, which does if it has an entry 'to'; or anything else, which does not.
    """
    return isinstance(cond, dict) and END_TIME in cond


def denoiser(
    apply: Apply,
    params: Params,
    parameterization: Parameterization,
    process: Process,
    **kwargs: Any,
) -> Denoise:
    """Makes a denoiser of a network: encode, apply, decode.

    A network with twice x_t's channels as its output has learned the reverse variance as well: the
    second half is nu of the prediction (Nichol & Dhariwal 2021, eq. 15).

    If the condition has an entry 'to', (B,), it is a time s <= t at which the move from x_t ends,
    for networks with a second time. The network receives sigma / (alpha + sigma) at s, a flow's own
    time under any process. Without that entry it assumes 0, the data.

    Args:
      apply: a function (params, x_in, c_noise, cond, **kwargs) -> F, (B, ...) like x_in or with
        twice its channels.
      params: parameters of the network.
      parameterization: what the network predicts, the pair (a, b) of F, and its inputs.
      process: the process of x_t.
      **kwargs: further arguments of `apply`. With log_variance=True or tokens=True, for networks
        that have it, `apply` returns it besides F, and the prediction includes it.

    Returns:
      The denoiser; its t may be a scalar or (B,).

    Raises:
      UserError: while tracing, if the network's output has a shape that does not fit x_t.
    """

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        if has_end_time(cond):
            alpha, sigma = process.alpha(cond[END_TIME]), process.sigma(cond[END_TIME])
            cond = cond | {END_TIME: sigma / (alpha + sigma)}
        x_in, c_noise = parameterization.encode(process, x_t, t)
        out = apply(params, x_in, c_noise, cond, **kwargs)
        F, more = out if isinstance(out, tuple) else (out, {})
        F, extra = F.astype(x_t.dtype), dict(more)
        if parameterization.residual:
            extra["residual"] = jnp.broadcast_to(parameterization.residual(process), t.shape)
        if F.shape == x_t.shape:
            return decode(parameterization, process, F, x_t, t)._replace(**extra)
        if F.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
            raise UserError(
                f"the network maps {x_t.shape} to {F.shape}; its output must have the same "
                "channels, or twice as many"
            )
        F, nu = jnp.split(F, 2, axis=-1)
        return decode(parameterization, process, F, x_t, t)._replace(nu=nu, **extra)

    return denoise


def change_process(denoise: Denoise, source: Process, process: Process) -> Denoise:
    """Evaluates a denoiser of one process under another, at the time of the same log-SNR.

    x_t is rescaled to the source's scale, sqrt(alpha^2 + sigma^2) at that time.

    Args:
      denoise: a denoiser of the source process.
      source: the process that `denoise` was made for.
      process: the process of the result.

    Returns:
      A denoiser of `process`.
    """

    def at_source(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        time = gaussian.time_of_logsnr(source, gaussian.logsnr(process, t))
        scale = jnp.hypot(source.alpha(time), source.sigma(time)) / jnp.hypot(
            process.alpha(t), process.sigma(t)
        )
        return denoise(expand(scale, x_t) * x_t, time, cond)

    return denoise if source == process else at_source


def same_network(
    parameterization: Parameterization, source: Process, process: Process, tolerance: float = 1e-2
) -> bool:
    """Whether a network trained under one process means the same under another.

    It does if its inputs (c_in x_t, c_noise) and its target's pair (a, b) are the same at equal
    log-SNR for the same x0 and eps, at every log-SNR that both processes have. This holds for
    networks that predict x0, eps or EDM's F and receive log(sigma / alpha). It does not hold for
    networks that receive the process's own time, or that predict v or the velocity of a process
    with another scale.

    Args:
      parameterization: what the network predicts, and its inputs.
      source: the process that the network was trained under.
      process: the process that it would be used under.
      tolerance: largest relative difference that counts as equal, above 0.

    Returns:
      Whether the network means the same under both.
    """
    ends = [
        [gaussian.logsnr(one, jnp.float32(t)) for t in (one.t_max, one.t_min)]
        for one in (source, process)
    ]
    low, high = (pick(*pair) for pick, pair in zip((jnp.maximum, jnp.minimum), zip(*ends)))
    if low >= high:
        return False
    lam = jnp.linspace(low, high, 9)[1:-1]

    def inputs_and_target(one: Process) -> Array:
        t = gaussian.time_of_logsnr(one, lam)
        x_t = one.alpha(t) + one.sigma(t)  # of x0 = eps = 1
        x_in, c_noise = parameterization.encode(one, x_t, t)
        return jnp.stack(
            [x_in, c_noise, *(c * jnp.ones_like(t) for c in parameterization.coefficients(one, t))]
        )

    a, b = inputs_and_target(source), inputs_and_target(process)
    return bool(jnp.all(jnp.abs(a - b) <= tolerance * (jnp.abs(a) + jnp.abs(b)) + 1e-3))


# ---- the pairs (a, b)
def x0(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts the data: (a, b) = (1, 0).

    Args:
      **encoding: arguments of `inputs.encoder`.
    """
    return Parameterization(
        lambda process, t: (jnp.ones_like(t), jnp.zeros_like(t)), encoder(**encoding)
    )


def eps(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts the noise (Ho et al. 2020): (a, b) = (0, 1).

    x0 is undetermined where alpha = 0, which the t_max of every process avoids.

    Args:
      **encoding: arguments of `inputs.encoder`.
    """
    return Parameterization(
        lambda process, t: (jnp.zeros_like(t), jnp.ones_like(t)), encoder(**encoding)
    )


def eps_skip(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts eps - x_t: eps-hat is x_t + F, as in the program of Kingma et al. 2021.

    A network whose output is 0 then takes x_t for noise, which it is for the most part where the
    log-SNR is low.

    Args:
      **encoding: arguments of `inputs.encoder`.
    """
    return Parameterization(
        lambda process, t: (-process.alpha(t), 1 - process.sigma(t)), encoder(**encoding)
    )


def v(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts v = alpha eps - sigma x0 (Salimans & Ho 2022, sec. 4).

    The determinant alpha^2 + sigma^2 is never small.

    Args:
      **encoding: arguments of `inputs.encoder`.
    """
    return Parameterization(
        lambda process, t: (-process.sigma(t), process.alpha(t)), encoder(**encoding)
    )


def velocity(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts the path's velocity alpha' x0 + sigma' eps (Lipman et al. 2023).

    For rectified flow this is eps - x0.

    Args:
      **encoding: arguments of `inputs.encoder`.
    """

    def coefficients(process: Process, t: Array) -> tuple[Array, Array]:
        return gaussian.derivative(process.alpha, t), gaussian.derivative(process.sigma, t)

    return Parameterization(coefficients, encoder(**encoding))


def score(**encoding: Unpack[Encoding]) -> Parameterization:
    """The network predicts the score -eps / sigma (Song & Ermon 2019): (a, b) = (0, -1 / sigma).

    Args:
      **encoding: arguments of `inputs.encoder`.
    """
    return Parameterization(
        lambda process, t: (jnp.zeros_like(t), -1 / process.sigma(t)), encoder(**encoding)
    )


def edm(sigma_data: float = 0.5, **encoding: Unpack[Encoding]) -> Parameterization:
    """EDM's preconditioning (Karras et al. 2022, table 1) for any alpha: x0 = c_skip x_t + c_out F.

        c_skip = alpha sigma_data^2 / (alpha^2 sigma_data^2 + sigma^2)
        c_out = sigma sigma_data / sqrt(alpha^2 sigma_data^2 + sigma^2)

    F has unit variance at every t.

    Args:
      sigma_data: standard deviation of the data.
      **encoding: further arguments of `inputs.encoder`.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("edm", sigma_data=(sigma_data, 1e-6, 1e4))

    def coefficients(process: Process, t: Array) -> tuple[Array, Array]:
        alpha, sigma = process.alpha(t), process.sigma(t)
        total = (alpha * sigma_data) ** 2 + sigma**2
        c_skip, c_out = alpha * sigma_data**2 / total, sigma * sigma_data / jnp.sqrt(total)
        # 1 - c_skip alpha = sigma^2 / total, written so that nothing cancels near t = 0
        return sigma**2 / total / c_out, -c_skip * sigma / c_out

    return Parameterization(coefficients, encoder(sigma_data=sigma_data, **encoding))


def consistency(sigma_data: float = 0.5, **encoding: Unpack[Encoding]) -> Parameterization:
    """Consistency models' preconditioning (Song et al. 2023, appendix C) for any alpha.

        x0 = c_skip x_t / alpha + c_out F,    u = sigma / alpha
        c_skip = sigma_data^2 / (sigma_data^2 + (u - u_min)^2)
        c_out = sigma_data (u - u_min) / sqrt(sigma_data^2 + u^2)

    At t_min, where u = u_min, x0 is x_t / alpha for every F. So x0-hat has noise of level u_min,
    which few_step.multistep takes into account.

    Args:
      sigma_data: standard deviation of the data.
      **encoding: further arguments of `inputs.encoder`.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("consistency", sigma_data=(sigma_data, 1e-6, 1e4))

    def boundary(process: Process, dtype: jnp.dtype = jnp.float32) -> Array:
        time = jnp.asarray(process.t_min, dtype)
        return process.sigma(time) / process.alpha(time)

    def coefficients(process: Process, t: Array) -> tuple[Array, Array]:
        u, u_min = process.sigma(t) / process.alpha(t), boundary(process, jnp.result_type(t))
        rise = jnp.maximum(u - u_min, 1e-12)  # F has no effect at t_min: the pair has a pole there
        total = sigma_data**2 + rise**2
        c_skip, c_out = sigma_data**2 / total, sigma_data * rise / jnp.sqrt(sigma_data**2 + u**2)
        return rise**2 / total / c_out, -c_skip * u / c_out

    return Parameterization(coefficients, encoder(sigma_data=sigma_data, **encoding), boundary)


# The members of the family, which a config may name.
PARAMETERIZATIONS = (x0, eps, eps_skip, v, velocity, score, edm, consistency)
