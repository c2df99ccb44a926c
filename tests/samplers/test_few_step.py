"""Few-step samplers: multistep sampling and jumps keep the distribution of the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.inverse import masks, measurements, methods
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, few_step, grids, step_noise
from diffusion_jax.targets import reference
from tests.objectives.exact_functions import FLOW, MIXTURE, NORMAL, exact


def test_multistep_keeps_the_law_on_any_times():
    """Every grid returns N(m, C) with the exact consistency function of N(m, C).

    The error is that of the prior, which is not exactly the law at t_max.
    """
    process = schedules.EDM()
    for ts in (
        grids.few_step(process, 1),
        grids.few_step(process, 2),
        grids.levels(process, 4, levels=(5.0, 0.9, 0.05)),
    ):
        keys = jax.random.key(0)
        x = base.sample(
            few_step.multistep(),
            exact(NORMAL, process),
            process,
            keys,
            base.start(process, keys, (40_000, 2)),
            ts,
        ).x0
        truth = np.asarray(NORMAL.draw(jax.random.key(1), 40_000))
        assert_allclose(x.mean(0), truth.mean(0), atol=0.02)
        assert_allclose(np.cov(x.T), np.cov(truth.T), atol=0.02)


@pytest.mark.parametrize("residual", [None, 0.2], ids=["to the data", "to t_min"])
def test_multistep_is_algorithm_1(residual):
    """x <- f(x, T); then x <- f(x + sqrt(tau^2 - u_min^2) z, tau) (Song et al. 2023), u_min = 0 for
    a function that ends at the data.
    """
    process, exact = schedules.EDM(), MIXTURE.denoise(schedules.EDM())

    def f(x, t, cond=None):
        return exact(x, t)._replace(residual=residual and jnp.full(len(x), residual))

    keys = arrays.example_keys(jax.random.key(0), 3)
    ts = grids.levels(process, 3, levels=(0.8, 0.3))
    noise = step_noise.independent(process, keys, jnp.zeros((3, 2)))
    x = y = base.start(process, keys, (3, 2))
    y = f(y, ts[0]).x0
    for i, tau in enumerate((0.8, 0.3)):
        level = np.sqrt(tau**2 - (residual or 0.0) ** 2)
        y = f(y + level * noise(i).path(ts[i], ts[i + 1]), jnp.float32(tau / 80)).x0
    found = base.sample(few_step.multistep(), f, process, keys, x, ts).x0
    assert_allclose(found, y, rtol=1e-4, atol=1e-5)
    assert base.evaluations(few_step.multistep(), ts) == 3 and base.draws_noise(
        few_step.multistep(), process
    )


@pytest.mark.parametrize("end", ["t_min", "data"])
def test_the_boundary_decides_how_much_noise_leads_back(end):
    """x_s has exactly the variance alpha_s^2 v + sigma_s^2, whichever end the function has.

    The function is the exact consistency function of N(0, v). One step is x_s = slope x + spread z;
    with the noise of the other end the variance is off by (alpha_s u_min)^2, here 4 to 30 %. VP has
    a large t_min.
    """
    process, v = schedules.VP(t_min=0.2), 0.5
    start = jnp.asarray(process.t_min)
    u_min = process.sigma(start) / process.alpha(start)
    rest = u_min if end == "t_min" else 0.0

    def f(x, t, cond):
        u = process.sigma(t) / process.alpha(t)
        x0 = jnp.sqrt((v + rest**2) / (v + u**2)) * x / process.alpha(t)
        return gaussian.from_x0(process, x, x0, t)._replace(
            residual=jnp.full(len(x), u_min) if end == "t_min" else None
        )

    t, rows, z = (
        jnp.asarray(0.9),
        jnp.asarray([[0.0], [1.0], [0.0]]),
        jnp.asarray([[0.0], [0.0], [1.0]]),
    )
    for s in (0.25, 0.4, 0.8):
        moved = few_step.multistep().step(
            step_noise.Noise(lambda t, s, part=0: z, None),
            rows,
            (),
            t,
            jnp.asarray(s),
            f,
            process,
            None,
        )[0]
        variance = (
            moved[1] ** 2 * (process.alpha(t) ** 2 * v + process.sigma(t) ** 2) + moved[2] ** 2
        )
        assert_allclose(variance, process.alpha(s) ** 2 * v + process.sigma(s) ** 2, rtol=1e-5)


def test_jumps_of_any_length_are_exact():
    """With the exact average velocity it stays on the trajectory; with a denoiser it is DDIM."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)))
        ts = jnp.asarray([0.999, 0.7, 0.2, 0.1])
        run = jax.jit(
            lambda x: (
                base.sample(
                    few_step.jump(),
                    exact(MIXTURE, FLOW),
                    FLOW,
                    jax.random.key(0),
                    x,
                    ts,
                    observe=lambda x, t: x,
                ).observed
            )
        )
        assert_allclose(
            run(x)[-1], reference.reference(MIXTURE.denoise(FLOW), FLOW, x, 0.999, 0.1), atol=1e-5
        )
        seen = base.sample(
            few_step.jump(),
            exact(NORMAL, FLOW),
            FLOW,
            jax.random.key(0),
            x,
            ts,
            observe=lambda x, t: x,
        ).observed
        for s, found in zip(ts[1:], seen):
            assert_allclose(
                found, NORMAL.flow(FLOW, x, jnp.full(5, 0.999), jnp.full(5, s)), rtol=1e-9
            )
        denoise = MIXTURE.denoise(FLOW)
        both = [
            base.sample(s, denoise, FLOW, jax.random.key(0), x, ts).x0
            for s in (few_step.jump(), ancestral.ddim())
        ]
        assert_allclose(*both, rtol=1e-12)
    assert not base.draws_noise(few_step.jump(), FLOW)


def test_few_step_grids():
    process = schedules.EDM()
    assert_allclose(
        process.sigma(grids.few_step(process, 2)), [80.0, 0.5], rtol=1e-5
    )  # where noise and data are of one size
    many = grids.few_step(process, 1000)  # whose first and last would be outside
    assert len(many) == 1000 and process.t_min < many[-1] < many[1] < many[0] == process.t_max
    angle = gaussian.angle(process, grids.few_step(process, 4)[1:], 0.5)
    assert_allclose(angle, np.pi / 2 * np.array([0.75, 0.5, 0.25]), rtol=1e-4)
    assert_allclose(process.sigma(grids.levels(process, 3)), [80.0, 0.8, 0.3], rtol=1e-5)
    assert grids.few_step(FLOW, 1) == grids.levels(FLOW, 1) == np.float32(FLOW.t_max)
    with pytest.raises(UserError, match="has 4 times"):
        grids.levels(process, 5)


@pytest.mark.parametrize("task", ["inpaint", "colorize"])
def test_zero_shot_editing_is_algorithm_4(task):
    """Song et al. 2023, appendix D: x <- A^{-1}(A y (1 - Omega) + A x Omega) after every jump, here
    ddnm with multistep.
    """
    shape = (4, 4, 3)

    def f(x, t, cond=None):
        return gaussian.from_x0(process, x, jnp.tanh(x) * (1 + t), t)

    process, keys = schedules.EDM(), arrays.example_keys(jax.random.key(0), 2)
    y0 = jax.random.uniform(jax.random.key(1), (2, *shape), minval=-1.0)
    measurement = (
        measurements.inpaint(shape, masks.half(shape))
        if task == "inpaint"
        else measurements.colorize(shape)
    )
    known = jnp.asarray(masks.half(shape))

    def gray(x):
        return jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)

    mix = (
        (lambda x: known * y0 + (1 - known) * x)
        if task == "inpaint"
        else (lambda x: x - gray(x) + gray(y0))
    )
    ts = grids.levels(process, 3)
    x = base.start(process, keys, y0.shape)

    @jax.jit
    def by_hand(x):
        noise, y = step_noise.independent(process, keys, y0), mix(f(x, ts[0]).x0)
        for i in (0, 1):
            y = mix(f(y + process.sigma(ts[i + 1]) * noise(i).path(ts[i], ts[i + 1]), ts[i + 1]).x0)
        return y

    seen, sampler = measurement.forward(y0), few_step.multistep()
    found = jax.jit(
        lambda x: (
            methods.restore(methods.ddnm(), measurement, seen, sampler, f, process, keys, x, ts).x0
        )
    )(x)
    assert_allclose(found, by_hand(x), atol=2e-5)
