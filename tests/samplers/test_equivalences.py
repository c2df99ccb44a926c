"""Methods that are the same under two names, and one network under several processes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import arrays
from diffusion_jax.denoisers import parameterization
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import (
    ancestral,
    base,
    multistep,
    ode,
    sde,
    singlestep,
    stochastic,
)
from diffusion_jax.targets import laws
from tests.families import PROCESSES
from tests.samplers.steps import MIXTURE, one_step

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


@every_process
def test_ddim_is_euler_in_the_straight_frame(process):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))
        t, s = (process.t_min + u * (process.t_max - process.t_min) for u in (0.6, 0.45))
        alpha_t, sigma_t, alpha_s, sigma_s = (
            f(jnp.asarray(u)) for u in (t, s) for f in (process.alpha, process.sigma)
        )
        eps = laws.denoise_mixture(MIXTURE, process)(x, t).eps
        euler = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * eps)
        assert_allclose(one_step(ancestral.ddim(), process), euler, rtol=1e-9, atol=1e-12)


@every_process
def test_ddim_one_is_ancestral(process):
    """The same map of x and of the noise; on the DDPM chain this is Ho et al.'s sampler."""
    with jax.enable_x64(True):
        assert_allclose(
            one_step(ancestral.ddim(1.0), process),
            one_step(ancestral.ddpm("small"), process),
            rtol=1e-9,
            atol=1e-12,
        )
        small, none = one_step(ancestral.ddim(1.0), process), one_step(ancestral.ddim(0.0), process)
        assert np.abs(small - none).min() > 0  # eta is used


@every_process
def test_learned_variance_spans_small_to_large(process):
    with jax.enable_x64(True):
        exact = laws.denoise_mixture(MIXTURE, process)
        for nu, name in ((-1.0, "small"), (1.0, "large")):
            learned = one_step(
                ancestral.ddpm("learned"),
                process,
                lambda x, t, cond, nu=nu: exact(x, t)._replace(nu=jnp.full_like(x, nu)),
            )
            assert_allclose(learned, one_step(ancestral.ddpm(name), process), rtol=1e-9, atol=1e-12)


def test_euler_in_t_is_ddim_on_edms_path():
    process = schedules.EDM()
    with jax.enable_x64(True):
        assert_allclose(
            one_step(ode.euler(), process), one_step(ancestral.ddim(), process), rtol=1e-9
        )
        assert_allclose(one_step(ode.heun(), process), one_step(ode.edm_heun(), process), rtol=1e-9)


@pytest.mark.parametrize(
    "options", [{"S_churn": 0.0}, {"S_min": 1e6, "S_max": 1e7}], ids=["churn_off", "out_of_range"]
)
def test_edm_without_churn_is_edm_heun(options):
    """They agree up to rounding, also when compiled.

    A fused difference of squares must not leave noise of sqrt(1e-16).
    """

    def shrinking(sampler, process, t):
        return one_step(sampler, process, t=t, s=0.9 * t)

    for process in (schedules.EDM(), schedules.VP()):
        with jax.enable_x64(True):
            pair = (sde.edm(**options), ode.edm_heun())
            steps = [jax.jit(jax.vmap(functools.partial(shrinking, one, process))) for one in pair]
            churned, plain = (step(jnp.linspace(0.1, 0.9, 50)) for step in steps)
            assert_allclose(churned, plain, rtol=1e-11, atol=1e-11)


PAIRS = {  # the same method under two names
    "ddim(1) is SDE-DPM-Solver++ 1": (ancestral.ddim(1.0), sde.dpmpp_1()),
    "Euler ancestral is ddim": (ancestral.euler_ancestral(0.7), ancestral.ddim(0.7)),
    "first-order SDE solver without noise is ddim": (sde.dpmpp_1(0.0), ancestral.ddim()),
    "SA without corrector": (sde.sa(1, 0), sde.dpmpp_1()),
    "2S without noise": (sde.dpmpp_2s(0.0), singlestep.dpmpp_2s()),
    "an interpolant with g^2": (sde.interpolant(), sde.euler_maruyama()),
    "an interpolant without noise": (sde.interpolant(scale=0.0), ode.euler()),
    "two names of one shape": (
        sde.interpolant("sin2", 0.3),
        sde.interpolant("increasing_decreasing", 0.3),
    ),
    "Euler ancestral by the wrapper": (
        stochastic.ancestral(ancestral.ddim(), 0.7),
        ancestral.ddim(0.7),
    ),
    "EDM by the wrapper": (
        stochastic.churned(ode.edm_heun(), 3.0, 0.0, 9.0, 1.1),
        sde.edm(3.0, 0.0, 9.0, 1.1),
    ),
    "the wrapper without noise": (stochastic.ancestral(ode.heun(), 0.0), ode.heun()),
    "churn without noise": (stochastic.churned(ode.midpoint(), S_churn=0.0), ode.midpoint()),
}


LONG_PAIRS = {  # of multistep methods, whose full order comes after the first steps
    "2M without noise": (sde.dpmpp_2m(0.0), multistep.dpmpp_2m()),
    "3M without noise": (sde.dpmpp_3m(0.0), multistep.dpmpp_3m()),
    "3M without noise, as the field has it": (sde.dpmpp_3m(0.0, 0.5), multistep.dpmpp_3m(0.5)),
    "SA with a constant tau": (sde.sa(2, 1, tau=lambda t: 0.7 + 0 * t), sde.sa(2, 1, tau=0.7)),
    "SA with noise nowhere": (sde.sa(2, 1, S_min=1e4, S_max=1e5), sde.sa(2, 1, tau=0.0)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_method_under_two_names(pair):
    with jax.enable_x64(True):
        for process in (schedules.VP(), schedules.EDM()):
            one, other = (one_step(sampler, process) for sampler in PAIRS[pair])
            assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pair", LONG_PAIRS)
def test_the_same_multistep_method_under_two_names(pair):
    """Over four uneven steps from one x and one key."""
    process = schedules.VP()
    with jax.enable_x64(True):
        x, keys = (
            jnp.asarray(np.random.default_rng(0).standard_normal((8, 2))),
            arrays.example_keys(jax.random.key(0), 8),
        )
        ts, denoise = (
            jnp.asarray([0.6, 0.45, 0.38, 0.2, 0.15]),
            laws.denoise_mixture(MIXTURE, process),
        )
        one, other = (
            base.sample(sampler, denoise, process, keys, x, ts).x0 for sampler in LONG_PAIRS[pair]
        )
        assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def network(params, x_in, c_noise, cond):
    """A smooth made-up network of two inputs per example."""
    hidden = jnp.tanh(x_in @ params["w"] + c_noise[:, None] * params["b"])
    return hidden @ params["w"].T


@pytest.mark.parametrize(
    "sampler", [ode.edm_heun(), ancestral.ddpm("small")], ids=["edm_heun", "ddpm"]
)
def test_one_network_is_the_same_model_under_any_process(sampler):
    """At equal log-SNRs, x scaled by sqrt(alpha^2 + sigma^2), the images agree to 1e-5."""
    keys = jax.random.split(jax.random.key(3), 2)
    params = {"w": jax.random.normal(keys[0], (2, 16)) / 2, "b": jax.random.normal(keys[1], (16,))}
    lam, unit = jnp.linspace(-5.0, 5.0, 12), jax.random.normal(jax.random.key(4), (8, 2))
    images = []
    for process in (schedules.EDM(), schedules.VP(), schedules.RectifiedFlow()):
        ts = gaussian.time_of_logsnr(process, lam)
        denoise = parameterization.denoiser(network, params, parameterization.edm(), process)
        x = unit * jnp.hypot(process.alpha(ts[0]), process.sigma(ts[0]))
        images.append(base.sample(sampler, denoise, process, jax.random.key(5), x, ts).x0)
    for image in images[1:]:
        assert_allclose(image, images[0], rtol=1e-5, atol=1e-5)
    assert np.std(images[0]) > 0.1
