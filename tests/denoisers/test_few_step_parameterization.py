"""Parameterizations of few-step models: preconditioning, boundaries and second times."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.denoisers import guidance, parameterization, thresholding
from diffusion_jax.inverse import measurements, methods
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, few_step
from tests.objectives.exact_functions import FLOW, MIXTURE, TRIG


def test_consistency_preconditioning_is_song_et_als():
    """On EDM: c_skip = sd^2 / ((u - u_min)^2 + sd^2), c_out = sd (u - u_min) / sqrt(sd^2 + u^2); at
    t_min F says nothing.
    """
    process, pair, sd = schedules.EDM(), parameterization.consistency(sigma_data=0.5), 0.5
    u = np.geomspace(0.002, 80, 7)
    x, F = np.random.default_rng(0).standard_normal((2, 7, 2))
    for dtype, rtol in (("float64", 1e-9), ("float32", 1e-3)):
        with jax.enable_x64(dtype == "float64"):
            t, x_t, out = jnp.asarray(u / 80, dtype), jnp.asarray(x, dtype), jnp.asarray(F, dtype)
            found = parameterization.decode(pair, process, out, x_t, t).x0
        c_skip, c_out = sd**2 / ((u - 0.002) ** 2 + sd**2), sd * (u - 0.002) / np.sqrt(sd**2 + u**2)
        assert_allclose(found, c_skip[:, None] * x + c_out[:, None] * F, rtol=rtol, atol=1e-6)
    for other in (process, FLOW, schedules.VP()):
        t = jnp.full(7, other.t_min)
        x0 = parameterization.decode(
            pair, other, 100 * jnp.asarray(F, jnp.float32), jnp.asarray(x, jnp.float32), t
        ).x0
        assert_allclose(x0, x / other.alpha(t)[:, None], rtol=1e-6)


def test_trigflow_with_edm_preconditioning_is_scms():
    """x0-hat = cos(phi) x + sin(phi) sigma_data F: minus their F_theta; x_t keeps the data's
    standard deviation.
    """
    t = jnp.asarray([0.1, 0.4, 0.9])
    x, F = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2)), jnp.float32)
    x0 = parameterization.decode(parameterization.edm(0.5), TRIG, F, x, t).x0
    phi = np.pi / 2 * t[:, None]
    assert_allclose(x0, np.cos(phi) * x + np.sin(phi) * 0.5 * F, rtol=1e-5)
    assert_allclose((0.5 * TRIG.alpha(t)) ** 2 + TRIG.sigma(t) ** 2, 0.25, rtol=1e-6)
    assert_allclose(gaussian.angle(TRIG, t, 0.5), phi[:, 0], rtol=1e-6)


def test_a_denoiser_of_another_process():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)), jnp.float32)
    t = jnp.asarray([0.05, 0.2, 0.4, 0.6, 0.9])
    vp = schedules.VP()
    found, own = (
        parameterization.change_process(MIXTURE.denoise(vp), vp, FLOW)(x, t),
        MIXTURE.denoise(FLOW)(x, t),
    )
    for a, b in zip(found[:2], own[:2]):
        assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make, ends", [("consistency", True), ("edm", False), ("v", False)])
def test_the_parameterization_says_where_its_function_ends(make, ends):
    """Guidance, thresholding, inverse problems and another process keep the end."""
    process = schedules.EDM(sigma_min=0.1, sigma_max=20.0)
    pair = getattr(parameterization, make)()

    def network(params, x, c_noise, cond):
        return jnp.sin(3 * x) + (0.0 if cond is None else cond["label"][:, None])

    denoise = parameterization.denoiser(network, None, pair, process)
    label = {"label": jnp.ones(4)}
    x, t, null = jnp.ones((4, 2)), jnp.asarray(0.3), lambda cond: {"label": jnp.zeros(4)}
    whole = measurements.linear((2,), np.eye(2)[:1], std=0.1)
    wrapped = [
        thresholding.clip_x0(denoise, process),
        guidance.rescale(guidance.conditional_pair(denoise, null), 2.0, process),
        guidance.interval(guidance.cfg(denoise, 2.0, null), denoise, process, 0.0, 9.0),
        parameterization.change_process(denoise, process, schedules.VP()),
        methods.ddnm().guide(denoise, process, whole, jnp.ones((4, 1))),
        methods.pigdm().guide(denoise, process, whole, jnp.ones((4, 1))),
    ]
    for each in wrapped:
        residual = jax.eval_shape(each, x, t, label).residual
        assert residual.shape == (4,) if ends else residual is None
    assert not ends or np.allclose(denoise(x, t, label).residual, 0.1, rtol=1e-5)
    t_min = jnp.full(4, process.t_min)
    assert (
        np.allclose(denoise(x, t_min, label).x0, x / process.alpha(t_min)[:, None], atol=1e-5)
        == ends
    )


def test_average_velocities_are_not_clipped():
    """A guided velocity may have an x0 outside of [-1, 1]: the jump of clip_x0 is the paper's z -
    (t - r) u all the same; the end is clipped.

    A denoiser, which has no second time, is clipped under few_step.jump as under ancestral.ddim.
    """
    x, t, s = jnp.asarray([[0.1, -0.1], [-0.2, 0.15]]), jnp.float32(0.55), jnp.float32(0.4)

    def average(x, t, cond=None):
        return gaussian.from_x0(FLOW, x, jnp.full_like(x, 1.4), t)

    for clipped in (
        thresholding.clip_x0(average, FLOW),
        thresholding.dynamic_threshold(average, FLOW),
    ):
        u = (x - 1.4) / t
        moved = few_step.jump().step(None, x, (), t, s, clipped, FLOW, None)[0]
        assert_allclose(moved, x - (t - s) * u, rtol=1e-5)
        assert (
            np.abs(
                base.sample(
                    few_step.jump(), clipped, FLOW, jax.random.key(0), x, jnp.stack([t, s])
                ).x0
            ).max()
            <= 1
        )
    plain = thresholding.without_end_time(
        thresholding.clip_x0(MIXTURE.denoise(FLOW), FLOW, -0.05, 0.05)
    )
    one, other = (
        sampler.step(None, x, (), t, s, plain, FLOW, None)[0]
        for sampler in (few_step.jump(), ancestral.ddim())
    )
    assert_allclose(one, other, rtol=1e-5)


def test_the_second_time_is_a_flows():
    """The network receives sigma / (alpha + sigma) at s: s itself on rectified flow."""
    conditions = []

    def apply(params, x, c, cond):
        conditions.append(cond)
        return x

    for process in (FLOW, schedules.EDM()):
        denoise = parameterization.denoiser(apply, None, parameterization.velocity(), process)
        label = {"label": jnp.zeros(2)}
        for cond in (label, few_step.ending_at(label, jnp.float32(0.25), 2)):
            denoise(jnp.ones((2, 2)), 0.5, cond)
    assert "to" not in conditions[0] and set(conditions[1]) == {"label", "to"}
    assert_allclose(conditions[1]["to"], [0.25, 0.25])
    assert_allclose(conditions[3]["to"], 20 / 21, rtol=1e-6)
    denoise(jnp.ones((2, 2)), 0.5, few_step.ending_at(None, 0.25, 2))
    assert set(conditions[-1]) == {"to"}
