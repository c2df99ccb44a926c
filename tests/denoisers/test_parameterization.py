"""Every parameterization under every process: the pair (a, b) is solved back exactly, and EDM's is
Karras et al.'s table.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Prediction
from diffusion_jax.denoisers import parameterization
from diffusion_jax.denoisers.parameterization import decode, denoiser, target
from diffusion_jax.processes import gaussian, schedules
from tests.families import PARAMETERIZATIONS, PROCESSES

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def along(process, dtype):
    """Eight times, both ends of the path included."""
    return jnp.linspace(process.t_min, process.t_max, 8, dtype=dtype)


def example(dtype):
    x0, eps = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(dtype)
    return jnp.asarray(x0), jnp.asarray(eps)


def conditioning(pair, process, t):
    """How much a rounding of F is amplified in x0 and in eps: |sigma| |F| / |det| and |alpha| |F| /
    |det|, with that of x_t; (8, 1) each.
    """
    (a, b), alpha, sigma = pair.coefficients(process, t), process.alpha(t), process.sigma(t)
    det, F, x_t = abs(alpha * b - sigma * a), abs(a) + abs(b), abs(alpha) + abs(sigma)
    return ((abs(b) * x_t + sigma * F) / det)[:, None], ((alpha * F + abs(a) * x_t) / det)[:, None]


@every_process
def test_decode_inverts_target(process):
    """The error is 1e-10 in float64, at every point of the path.

    In float32 it is a few roundings times the condition of the 2x2 system.
    """
    with jax.enable_x64(True):
        t, (x0, eps) = along(process, "float64"), example("float64")
        x_t = gaussian.corrupt(process, x0, eps, t).x_t
        for name, pair in PARAMETERIZATIONS.items():
            back = decode(pair, process, target(pair, process, Prediction(x0, eps), t), x_t, t)
            for value, truth in zip(back, (x0, eps)):
                assert_allclose(value, truth, rtol=1e-9, atol=1e-9, err_msg=name)
    t, (x0, eps) = along(process, "float32"), example("float32")
    x_t = gaussian.corrupt(process, x0, eps, t).x_t
    for name, pair in PARAMETERIZATIONS.items():
        back = decode(pair, process, target(pair, process, Prediction(x0, eps), t), x_t, t)
        for value, truth, condition in zip(back, (x0, eps), conditioning(pair, process, t)):
            assert value.dtype == jnp.float32
            assert np.all(np.abs(value - truth) < 2e-6 * condition), name


@every_process
def test_any_output_makes_a_prediction_of_x_t(process):
    """x_t = alpha x0 + sigma eps for any F, so that affine mixes of predictions are predictions."""
    t, (x_t, F) = along(process, "float32"), example("float32")
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    for name, pair in PARAMETERIZATIONS.items():
        x0, eps = decode(pair, process, F, x_t, t)[:2]
        rounding = 3e-6 * (1 + abs(alpha * x0) + abs(sigma * eps))
        assert np.all(np.abs(alpha * x0 + sigma * eps - x_t) < rounding), name


def test_edm_is_table_1_of_karras():
    """On alpha = 1 with sigma_data = 0.5, from the table's own expressions."""
    process, sd = schedules.EDM(), 0.5
    with jax.enable_x64(True):
        sigma = np.geomspace(0.002, 80, 8)
        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd / np.sqrt(sd**2 + sigma**2)
        c_in, c_noise = 1 / np.sqrt(sigma**2 + sd**2), np.log(sigma) / 4
        pair, t, (x_t, F) = parameterization.edm(), jnp.asarray(sigma / 80), example("float64")
        x_in, fed = pair.encode(process, x_t, t)
        assert_allclose(x_in, c_in[:, None] * x_t, rtol=1e-12)
        assert_allclose(fed, c_noise, rtol=1e-12)
        assert_allclose(
            decode(pair, process, F, x_t, t).x0,
            c_skip[:, None] * x_t + c_out[:, None] * F,
            rtol=1e-9,
            atol=1e-12,
        )


@every_process
def test_edm_preconditioning_has_unit_variance_everywhere(process):
    """F = a x0 + b eps, and c_in x_t, have variance 1 for white data of standard deviation
    sigma_data, under any process.
    """
    sd = 0.5
    t, pair = along(process, "float32"), parameterization.edm(sd)
    a, b = pair.coefficients(process, t)
    assert_allclose((a * sd) ** 2 + b**2, 1.0, rtol=1e-5)
    scale = pair.encode(process, jnp.ones((8, 3)), t)[0][:, 0]
    assert_allclose(
        scale**2 * ((process.alpha(t) * sd) ** 2 + process.sigma(t) ** 2), 1.0, rtol=1e-5
    )


def test_velocity_on_the_straight_path_is_eps_minus_x0():
    process, (x0, eps) = schedules.RectifiedFlow(), example("float32")
    t = along(process, "float32")
    assert_allclose(
        target(parameterization.velocity(), process, Prediction(x0, eps), t), eps - x0, rtol=1e-6
    )
    on_circle = schedules.Cosine()
    v = target(parameterization.v(), on_circle, Prediction(x0, eps), t)
    velocity = target(parameterization.velocity(), on_circle, Prediction(x0, eps), t)
    assert_allclose(
        velocity, 0.5 * np.pi * v, rtol=1e-5, atol=1e-6
    )  # v is the velocity on the unit circle


def test_score_target_is_the_score():
    process, (x0, eps) = schedules.VP(), example("float32")
    t = along(process, "float32")
    assert_allclose(
        target(parameterization.score(), process, Prediction(x0, eps), t),
        -eps / expand(process.sigma(t), eps),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"noise_input": "time", "time_scale": 1000.0}, lambda process, t: 1000 * t),
        (
            {"noise_input": "logsnr"},
            lambda process, t: 0.25 * np.log(process.sigma(t) / process.alpha(t)),
        ),
    ],
)
def test_noise_input(options, expected):
    process, t = schedules.VP(), jnp.linspace(0.1, 0.9, 8)
    x_in, c_noise = parameterization.eps(input_scale=False, **options).encode(
        process, jnp.ones((8, 3)), t
    )
    assert_allclose(c_noise, expected(process, t), rtol=1e-5)
    assert np.all(x_in == 1)


def test_unknown_noise_input():
    with pytest.raises(UserError, match="did you mean 'time'"):
        parameterization.v(noise_input="tiem")


# ---- denoiser
def test_denoiser_encodes_applies_and_decodes():
    process, pair = schedules.VP(), parameterization.v()
    x_t, t = jnp.asarray(example("float32")[0]), jnp.linspace(0.1, 0.9, 8)

    def apply(params, x_in, c_noise, cond, gain):
        return (params["w"] * x_in + c_noise[:, None] + cond[:, None] * gain).astype(jnp.bfloat16)

    label = jnp.arange(8.0)
    prediction = denoiser(apply, {"w": 2.0}, pair, process, gain=3.0)(x_t, t, label)
    x_in, c_noise = pair.encode(process, x_t, t)
    F = (2 * x_in + c_noise[:, None] + 3 * label[:, None]).astype(jnp.bfloat16).astype(jnp.float32)
    for value, truth in zip(prediction[:2], decode(pair, process, F, x_t, t)):
        assert value.dtype == jnp.float32  # a bfloat16 network still makes float32 predictions
        assert_allclose(value, truth, rtol=1e-6)
    assert prediction.nu is None


def test_denoiser_takes_a_scalar_time():
    process = schedules.EDM()
    denoise = denoiser(
        lambda params, x, c, cond: x * c[:, None], {}, parameterization.edm(), process
    )
    x_t = jnp.asarray(example("float32")[0])
    for scalar, batched in zip(denoise(x_t, 0.3)[:2], denoise(x_t, jnp.full(8, 0.3))[:2]):
        assert_allclose(scalar, batched, rtol=1e-6)


def test_denoiser_with_learned_variance():
    process, pair = schedules.VP(), parameterization.eps()
    x_t, t = jnp.ones((2, 4, 4, 3)), jnp.array([0.2, 0.7])
    F, nu = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    prediction = denoiser(lambda *args: jnp.concatenate([F, nu], -1), {}, pair, process)(x_t, t)
    assert_allclose(prediction.nu, nu)
    assert_allclose(prediction.eps, F, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4, 9])
def test_denoiser_names_a_wrong_channel_count(channels):
    denoise = denoiser(
        lambda params, x, c, cond: jnp.zeros((*x.shape[:-1], channels)),
        {},
        parameterization.x0(),
        schedules.VP(),
    )
    shapes = rf"\(2, 4, 4, 3\) to \(2, 4, 4, {channels}\).*twice as many"
    with pytest.raises(UserError, match=shapes):
        denoise(jnp.ones((2, 4, 4, 3)), 0.5)
