"""Adaptive solvers: tolerances, evaluations, and giving up; Brownian paths."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import arrays
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import adaptive, base, grids, sde, step_noise
from diffusion_jax.targets import laws
from tests.families import PROCESSES
from tests.samplers.steps import MIXTURE, setting


@pytest.mark.parametrize("name", ["SubVP", "DDPM_linear"])
def test_adaptive_solvers_keep_their_tolerance(name):
    process = PROCESSES[name]
    with jax.enable_x64(True):
        target = laws.gaussian(jnp.array([0.5, -1.0]), jnp.array([[0.3, 0.2], [0.2, 0.4]]))
        ts = jnp.array([process.t_max, process.t_min])
        x = jax.random.normal(jax.random.key(0), (4, 2), "float64") * process.sigma(ts[0])
        exact = laws.denoise_gaussian(target, process)(laws.flow(target, process, x, *ts), ts[1]).x0
        dpm = functools.partial(adaptive.dpm_adaptive, 3)
        for solver, tolerance in (
            (adaptive.tsit5, 1e-3),
            (adaptive.dopri5, 1e-6),
            (adaptive.dopri8, 1e-9),
            (dpm, 1e-4),
        ):
            run = jax.jit(
                functools.partial(
                    base.sample,
                    solver(tolerance, tolerance),
                    laws.denoise_gaussian(target, process),
                    process,
                )
            )
            image, _, nfe = run(jax.random.key(1), x, ts)
            error = np.abs(np.asarray(image - exact)).max()
            assert (
                error < 30 * tolerance
                and (tolerance < 1e-3 or error > 1e-7)
                and 20 < min(nfe) <= max(nfe) < 600
            ), solver


@pytest.mark.parametrize("solver", [adaptive.tsit5, adaptive.dopri8])
def test_adaptive_solvers_count_their_evaluations(solver):
    process, denoise, keys, x, ts = setting(count=1)
    calls = []

    def counting(y, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return denoise(y, t, cond)

    nfe = base.sample(solver(), counting, process, keys, x, ts[jnp.array([0, -1])]).nfe
    jax.effects_barrier()
    assert len(calls) == nfe[0] > 30


@pytest.mark.parametrize(
    "solver",
    [adaptive.tsit5(1e-7, 1e-7), adaptive.dpm_adaptive(2, 1e-9, 1e-9)],
    ids=["tsit5", "dpm_adaptive"],
)
def test_an_adaptive_solver_that_gives_up_says_so(solver):
    process = schedules.VP()

    def jumpy(x, t, cond=None):
        return gaussian.from_eps(process, x, jnp.sign(jnp.sin(1e5 * x)), t)

    x = jnp.ones((1, 2))
    image = base.sample(solver, jumpy, process, jax.random.key(0), x, jnp.array([1.0, 0.5])).x0
    assert not np.isfinite(image).any()


def test_brownian_increments_add_up():
    """Standardized increments of one path: of unit variance, the same on any grid, independent on
    disjoint intervals.
    """
    process, x, keys = (
        schedules.VP(),
        jnp.zeros((2000, 1)),
        arrays.example_keys(jax.random.key(0), 2000),
    )
    ts = grids.uniform_logsnr(process, 5)
    lam = gaussian.logsnr(process, ts)
    path = jax.jit(lambda t, s: step_noise.brownian(process, keys, x)(0).path(t, s))
    parts = np.stack([path(t, s)[:, 0] for t, s in zip(ts[:-1], ts[1:])])
    whole = np.asarray(path(ts[0], ts[-1])[:, 0])
    share = np.sqrt(np.diff(lam) / (lam[-1] - lam[0]))
    assert_allclose(share @ parts, whole, atol=2e-3)
    assert np.abs(np.cov(np.vstack([parts, whole])).diagonal() - 1).max() < 5 * np.sqrt(2 / 2000)
    assert np.abs(np.corrcoef(parts) - np.eye(4)).max() < 5 / np.sqrt(2000)


def test_on_one_brownian_path_sde_solvers_converge_to_one_image():
    """Strongly: the image itself, not only its law, goes to a limit as the steps shrink; with fresh
    noise it does not.
    """
    process, keys = schedules.VP(), arrays.example_keys(jax.random.key(1), 32)
    denoise, x = laws.denoise_mixture(MIXTURE, process), base.start(process, keys, (32, 2))

    def distance(noise):
        run = jax.jit(
            functools.partial(
                base.sample, sde.dpmpp_2m(), denoise, process, noise=noise, padded=True
            )
        )
        ts = [grids.uniform_logsnr(process, n) for n in (33, 65, 257)]
        images = [
            run(keys, x, jnp.append(part, jnp.full(257 - len(part), part[-1]))).x0 for part in ts
        ]
        return [float(jnp.sqrt(jnp.mean((image - images[-1]) ** 2))) for image in images[:2]]

    (coarse, fine), (fresh, _) = distance(step_noise.brownian), distance(step_noise.independent)
    assert fine < 0.6 * coarse and coarse < 0.5 * fresh
