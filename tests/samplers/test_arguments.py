"""The arguments of samplers: amounts of noise, and messages for wrong values."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import (
    adaptive,
    ancestral,
    base,
    corrector,
    grids,
    multistep,
    ode,
    sde,
    singlestep,
    step_noise,
    stochastic,
)
from diffusion_jax.targets import laws
from tests.families import SAMPLERS
from tests.samplers.steps import one_step


@pytest.mark.parametrize("make", [ancestral.ddim, ancestral.euler_ancestral])
def test_eta_above_one_is_limited_to_all_the_noise_there_is(make):
    """x_s = alpha_s x0-hat + sigma_s z there, which forgets x_t (k-diffusion's own steps of eta =
    1.5 are in test_parity.py).
    """
    process = schedules.VP()
    with jax.enable_x64(True):
        found = one_step(
            make(100.0),
            process,
            lambda x, t, cond: gaussian.from_x0(process, x, jnp.full_like(x, 0.3), t),
            t=0.6,
            s=0.45,
        )
        s = jnp.asarray(process.t_min + 0.45 * (process.t_max - process.t_min))
        z = step_noise.independent(process, arrays.example_keys(jax.random.key(0), 8), found)(
            0
        ).path(s, s)
        assert_allclose(found, process.alpha(s) * 0.3 + process.sigma(s) * z, rtol=1e-9)


AMOUNTS = [
    (ancestral.ddim, "eta"),
    (ancestral.euler_ancestral, "eta"),
    (sde.dpmpp_1, "eta"),
    (sde.dpmpp_2m, "eta"),
    (sde.dpmpp_3m, "eta"),
    (sde.dpmpp_2s, "eta"),
    (sde.sa, "tau"),
    (sde.interpolant, "scale"),
    (sde.edm, "S_churn"),
    (sde.edm, "S_noise"),
    (corrector.langevin, "snr"),
    (corrector.annealed_langevin, "snr"),
    (corrector.predictor_corrector, "snr"),
    (corrector.ncsn, "snr"),
    (functools.partial(stochastic.ancestral, ode.heun()), "eta"),
    (functools.partial(stochastic.ancestral, ode.heun()), "S_noise"),
    (functools.partial(stochastic.churned, ode.heun()), "S_churn"),
    (functools.partial(stochastic.churned, ode.heun()), "S_noise"),
]


@pytest.mark.parametrize(
    "make, name",
    AMOUNTS,
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", "wrapper"),
)
def test_an_amount_of_noise_is_a_finite_number_of_at_least_zero(make, name):
    """For every argument of every sampler that is one: refused when the sampler is made, by its
    name.
    """
    for value in (-0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"{name}={value}"):
            make(**{name: value})


def test_no_amount_of_noise_is_left_out():
    """AMOUNTS lists every argument called eta, tau, scale, snr, S_churn or S_noise."""
    names = {"eta", "tau", "scale", "snr", "S_churn", "S_noise"}
    found = {
        (name, p)
        for name, make in SAMPLERS.items()
        for p in inspect.signature(make).parameters
        if p in names
    }
    stated = {
        (f"{make.__module__.rpartition('.')[2]}.{make.__name__}", name)
        for make, name in AMOUNTS
        if hasattr(make, "__name__")
    }
    assert found == {pair for pair in stated if pair[0] in SAMPLERS}


@pytest.mark.parametrize("diffusion", ["decreasing", "increasing_decreasing", "linear"])
def test_interpolants_keep_the_law_of_narrow_data(diffusion):
    """250 even steps of t suffice on rectified flow if D falls toward the data.

    A D that grows there would give a standard deviation of 1e7.
    """
    process, std = schedules.RectifiedFlow(), 0.01
    with jax.enable_x64(True):
        ts = grids.uniform(process, 251).astype("float64")
        target = laws.Gaussian(*(jnp.asarray(v, "float64") for v in ([0.3], [std**2], np.eye(1))))
        mean, variance = moments(
            sde.interpolant(diffusion),
            laws.denoise_gaussian(target, process),
            process,
            ts,
            0.3,
            std**2,
        )
    assert abs(mean - 0.3) < 0.05 * std and abs(np.sqrt(variance) / std - 1) < 0.15


def moments(sampler, denoise, process, ts, mean, variance):
    """Mean and variance of the x0-hat that one-dimensional Gaussian data end in, exactly: every
    step is x -> slope x + offset + spread z.
    """
    rows = jnp.asarray([[0.0], [1.0], [0.0]])

    def move(carry, times):
        z = jnp.asarray([[0.0], [0.0], [1.0]])
        mean, variance = carry
        noise = step_noise.Noise(lambda t, s, part=0: z, lambda i: z)
        offset, one, spread = sampler.step(noise, rows, (), *times, denoise, process, None)[0][:, 0]
        return (
            (one - offset) * mean + offset,
            (one - offset) ** 2 * variance + (spread - offset) ** 2,
        ), None

    start = (
        process.alpha(ts[0]) * mean,
        process.alpha(ts[0]) ** 2 * variance + process.sigma(ts[0]) ** 2,
    )
    (mean, variance), _ = jax.lax.scan(move, start, (ts[:-1], ts[1:]))
    offset, one, _ = denoise(rows, ts[-1]).x0[:, 0]
    return float((one - offset) * mean + offset), float((one - offset) ** 2 * variance)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sde.sa(5), "1 to 4"),
        (lambda: sde.sa(tau=-1.0), "at least 0"),
        (lambda: sde.interpolant("sde2"), "did you mean 'sde'"),
        (lambda: sde.interpolant(scale=-1.0), "at least 0"),
        (lambda: sde.dpmpp_2s(r=1.0), "between 0 and 1"),
        (lambda: singlestep.dpm_3s(0.3, 1.5), "ratios"),
        (lambda: corrector.langevin(steps=0), "at least 1"),
        (lambda: sde.edm(S_min=3.0, S_max=1.0), "S_max not below"),
        (lambda: sde.sa(S_min=-1.0), "S_min must be 0 or above"),
        (lambda: stochastic.ancestral(ode.heun(), 1.5), "at most 1"),
        (lambda: stochastic.ancestral(ancestral.ddpm()), "deterministic"),
        (lambda: stochastic.churned(multistep.unipc()), "without memory"),
        (lambda: stochastic.ancestral(adaptive.tsit5()), "without memory"),
        (lambda: stochastic.churned(ode.heun(), S_min=2.0, S_max=1.0), "S_max not below"),
        (lambda: sde.dpmpp_3m(second="heun"), "midpoint"),
        (lambda: adaptive.dpm_adaptive(4), "2 or 3"),
        (lambda: adaptive.dpm_adaptive(h_init=0.0), "h_init=0.0"),
        (lambda: multistep.pndm("euler"), "There are: heun, runge_kutta"),
        (lambda: adaptive.tsit5(rtol=0.0), "rtol=0.0"),
        (lambda: adaptive.dopri5(atol=float("nan")), "atol=nan"),
        (lambda: multistep.deis(5), "1 to 4"),
        (lambda: multistep.unipc(variant="bh3"), "bh1"),
        (lambda: sde.dpmpp_2m(second="heun"), "midpoint"),
    ],
)
def test_wrong_arguments_say_what_is_right(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_ancestral_errors():
    with pytest.raises(UserError, match="did you mean 'learned'"):
        ancestral.ddpm("learnt")
    with pytest.raises(UserError, match="learn_variance"):
        one_step(ancestral.ddpm("learned"), schedules.VP())


def test_without_an_amount_of_noise_a_sampler_is_deterministic():
    """Such a sampler can encode, have its grid optimized and be wrapped."""
    for none, some in (
        (stochastic.churned(ode.midpoint(), 0.0), stochastic.churned(ode.midpoint())),
        (sde.edm(0.0), sde.edm()),
        (stochastic.ancestral(ode.heun(), 0.0), stochastic.ancestral(ode.heun())),
        (sde.sa(tau=0.0), sde.sa()),
        (sde.interpolant(scale=0.0), sde.interpolant()),
        (ancestral.ddim(0.0), ancestral.ddim(1.0)),
        *((make(0.0), make()) for make in (sde.dpmpp_1, sde.dpmpp_2m, sde.dpmpp_3m, sde.dpmpp_2s)),
    ):
        assert not base.draws_noise(none, schedules.VP()) and base.draws_noise(some, schedules.VP())
