"""The inputs of a network: the scaled x_t, and a number that describes its noise level.

x_in = c_in x_t has unit variance for data of standard deviation `sigma_data`. c_noise = log(sigma /
alpha) / 4 describes the noise level itself rather than the time of a process, so that one network
means the same under VP, EDM or a flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import need_ranges, unknown
from diffusion_jax.core.types import Array, Process
from diffusion_jax.processes import gaussian

# (process, x_t, t) -> (x_in, c_noise), the inputs of the network
Encode = Callable[[Process, Array, Array], tuple[Array, Array]]


class Encoding(TypedDict, total=False):
    """The arguments of `encoder`, which every parameterization takes too.

    Attributes:
      sigma_data: standard deviation of the data.
      noise_input: 'logsnr' or 'time', which c_noise is.
      input_scale: whether x_t is scaled by c_in.
      time_scale: factor of the time in c_noise.
      time_shift: added to the time in c_noise.
    """

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
) -> Encode:
    """The inputs of a network: x_in = c_in x_t and c_noise.

        c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2)
        c_noise = log(sigma / alpha) / 4  (EDM's ln(sigma) / 4),  or  time_scale t + time_shift

    Args:
      sigma_data: standard deviation of the data.
      noise_input: 'logsnr' or 'time', which of the two c_noise is.
      input_scale: False gives c_in = 1, the convention of DDPM's and NCSN's checkpoints.
      time_scale: factor of the time.
      time_shift: added to the time; with -0.001, 1000 c_noise is the step from 0 to 999 of DDPM's
        checkpoints.

    Returns:
      A function (process, x_t, t) -> (x_in, c_noise).

    Raises:
      UserError: if `noise_input` is unknown or a number is out of range.
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
        if noise_input == "logsnr":
            c_noise = -gaussian.logsnr(process, t) / 8
        else:
            c_noise = time_scale * t + time_shift
        if not input_scale:
            return x_t, c_noise
        alpha, sigma = process.alpha(t), process.sigma(t)
        return x_t / expand(jnp.sqrt((alpha * sigma_data) ** 2 + sigma**2), x_t), c_noise

    return encode
