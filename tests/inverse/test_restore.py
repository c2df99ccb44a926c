"""Every method under every process and with every sampler: known pixels, and its cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.inverse import measurements, methods
from diffusion_jax.processes import schedules
from diffusion_jax.samplers import ancestral, base, grids, multistep, ode
from diffusion_jax.targets import laws
from tests.families import PROCESSES, SAMPLERS, AnyOf
from tests.inverse.problems import COVARIANCE, MEAN, METHODS, STD, A


@pytest.mark.parametrize("name", METHODS)
def test_every_method_under_every_process_ends_on_the_measurement(name):
    """Finite, A x0 = y where there is no noise, and an image depends on its own key alone."""
    law = laws.gaussian(MEAN, COVARIANCE)
    measurement = measurements.inpaint((3,), np.array([1.0, 0.0, 1.0], "float32"))
    y = measurement.forward(
        jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), "float32")
    )

    @jax.jit
    def run(index, keys, y, ts):
        process = AnyOf(index)
        x = base.start(process, keys, y.shape)
        denoise = laws.denoise_gaussian(law, process)
        return methods.restore(
            METHODS[name],
            measurement,
            y,
            ancestral.ddim(0.5),
            denoise,
            process,
            keys,
            x,
            ts,
            padded=True,
        ).x0

    for index, process in enumerate(PROCESSES.values()):
        keys, ts = jax.random.split(jax.random.key(0), 3), grids.uniform_logsnr(process, 7)
        x0 = np.asarray(run(index, keys, y, ts))
        assert np.isfinite(x0).all(), f"{name} under {list(PROCESSES)[index]}"
        assert_array_equal(x0[:, [0, 2]], np.asarray(y)[:, [0, 2]])
    assert_allclose(run(index, keys[::-1], y[::-1], ts), x0[::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_a_guided_denoiser_and_a_wrapper(sampler):
    """Traced, not run: of the kinds of method one each."""
    process, law = schedules.VP(), laws.gaussian(MEAN, COVARIANCE)
    made = SAMPLERS[sampler]()

    def denoise(x, t, cond=None):
        return laws.denoise_gaussian(law, process)(x, t)._replace(nu=jnp.zeros_like(x))

    measurement, ts = measurements.linear((3,), A, STD), grids.uniform_logsnr(process, 3)

    def run(method, key, x, y):
        return methods.restore(method, measurement, y, made, denoise, process, key, x, ts).x0

    for method in (methods.pigdm(), methods.repaint(2, 2), methods.dps()):
        out = jax.eval_shape(
            functools.partial(run, method),
            jax.random.key(0),
            jnp.zeros((2, 3)),
            jnp.zeros((2, 2)),
        )
        assert out.shape == (2, 3)
        assert base.adaptive(made) or method.wrap(made, measurement, None).nfe >= made.nfe


def test_evaluations_of_wrapped_samplers():
    measurement = measurements.inpaint((2,), np.ones(2))

    def counted(method, sampler):
        return base.evaluations(method.wrap(sampler, measurement, None), np.zeros(4))

    assert counted(methods.replacement(), ode.heun()) == 7
    assert counted(methods.repaint(5, 2), ancestral.ddpm()) == 3 * 10 + 1
    assert counted(methods.dps(), ancestral.ddpm()) == 3 * 2 + 1
    # its first moves cost more: of two moves to a move of the grid, the first two's cost comes each
    # time
    pndm = multistep.pndm()
    assert counted(methods.repaint(3, 2), pndm) == 3 * (6 * pndm.nfe + sum(pndm.warmup[:6])) + 1


def test_repaint_counts_what_it_evaluates():
    process, calls = schedules.VP(), []
    measurement = measurements.inpaint((2,), np.array([1.0, 0.0], "float32"))

    def denoise(x, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return laws.denoise_gaussian(laws.gaussian(np.zeros(2), np.eye(2)), process)(x, t)

    ts, y = grids.uniform(process, 3), jnp.ones((1, 2))
    methods.restore(
        methods.repaint(3, 2),
        measurement,
        y,
        ancestral.ddpm(),
        denoise,
        process,
        jax.random.key(0),
        y,
        ts,
    )
    jax.effects_barrier()
    assert len(calls) == 2 * 6 + 1


def test_only_dps_takes_what_is_not_linear():
    """y = x + x^3: dps finds the x0 that it is of, to within its last step, 2 scale |grad |r|| <= 2
    scale (1 + 3 x^2).
    """
    assert {name for name, method in METHODS.items() if not method.linear} == {"unguided", "dps"}
    process, measurement, truth = (
        schedules.VP(),
        measurements.Measurement(lambda x: x + x**3),
        jnp.array([[0.5, -0.8]] * 4),
    )
    law, ts = laws.gaussian(np.zeros(2), np.eye(2)), grids.uniform_logsnr(process, 80)
    run = jax.jit(
        lambda keys, y: (
            methods.restore(
                methods.dps(0.05),
                measurement,
                y,
                ancestral.ddim(),
                laws.denoise_gaussian(law, process),
                process,
                keys,
                base.start(process, keys, y.shape),
                ts,
            ).x0
        )
    )
    found = run(jax.random.split(jax.random.key(0), 4), measurement.forward(truth))
    assert_allclose(found, truth, atol=2 * 0.05 * (1 + 3 * 0.8**2))
