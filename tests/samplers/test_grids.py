"""Grids of times: their ends, what they are even in, other programs' integers, and times placed by
gradient.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build
from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import discrete, gaussian, schedules
from diffusion_jax.samplers import (
    adaptive,
    ancestral,
    base,
    few_step,
    grids,
    multistep,
    ode,
    placement,
)
from diffusion_jax.targets import laws, reference
from tests.families import GRIDS, PROCESSES, SAMPLERS

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
STRIDED = ("leading", "linspace", "trailing")

OPEN = (
    "few_step",
    "levels",
    "logistic",
    "runge_kutta",
)  # they end before the data does: test_few_step.py, and below


@every_process
def test_grids_go_strictly_down_from_end_to_end(process):
    for name, grid in ((name, grid) for name, grid in GRIDS.items() if name not in OPEN):
        ts = np.asarray(grid(process, 40))
        assert ts.shape == (40,) and ts.dtype == np.float32 and np.all(np.diff(ts) < 0), name
        if name not in STRIDED:
            assert ts[0] == np.float32(process.t_max) and ts[-1] == np.float32(process.t_min), name
            assert np.asarray(grid(process, 1)) == [np.float32(process.t_max)], name


@every_process
def test_grids_are_even_in_what_they_say(process):
    with jax.enable_x64(True):
        lam = np.asarray(gaussian.logsnr(process, grids.uniform_logsnr(process, 40)))
        ratio = np.exp(
            -0.5 * np.asarray(gaussian.logsnr(process, grids.karras(process, 40, rho=3.0)))
        ) ** (1 / 3)
        angle, flow = (
            np.exp(-0.5 * np.asarray(gaussian.logsnr(process, grid)))
            for grid in (grids.cosine(process, 40), grids.flow_shift(process, 40))
        )
        for even in (
            lam,
            ratio,
            grids.uniform(process, 40),
            np.sqrt(grids.quadratic(process, 40)),
            np.arctan(angle),
            flow / (3 + flow),
        ):
            steps = np.diff(even)
            assert_allclose(steps, steps.mean(), rtol=1e-6)


@every_process
def test_the_logistic_grid_is_even_in_its_quantiles(process):
    """The last of n + 1 steps is the one to x0-hat: with t_min appended the n steps are equal."""
    with jax.enable_x64(True):
        ts = jnp.append(grids.logistic(process, 12, mean=-0.5, scale=2.0), process.t_min)
        z = (-0.5 * np.asarray(gaussian.logsnr(process, ts)) + 0.5) / 2
        steps = np.diff(1 / (1 + np.exp(-z)))
        assert len(ts) == 13 and ts[0] == process.t_max
        assert_allclose(steps, steps.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "process, in_time", [(schedules.VP(), True), (schedules.VP(), False), (schedules.EDM(), True)]
)
def test_the_grid_of_runge_kutta_steps_is_even_in_its_shares(process, in_time):
    """In a quantile of the logistic distribution and in the logarithm of the size that grows; the
    last share is x0-hat's.
    """
    with jax.enable_x64(True):
        ts = jnp.append(
            grids.runge_kutta(process, 6, mean=-0.9, scale=1.2, growth=0.1, in_time=in_time),
            process.t_min,
        )
        alpha, sigma = np.asarray(process.alpha(ts)), np.asarray(process.sigma(ts))
        size = np.sqrt(0.25 + (sigma / alpha) ** 2) * (alpha if in_time else 1)
        steps = np.diff(1 / (1 + np.exp(-(np.log(sigma / alpha) + 0.9) / 1.2)) + 0.1 * np.log(size))
        assert len(ts) == 7 and ts[0] == process.t_max
        assert_allclose(
            steps, steps.mean(), rtol=1e-3
        )  # it interpolates in a table of 1,000 levels
    for grid in (grids.logistic, grids.runge_kutta):
        assert np.asarray(grid(process, 1)) == [np.float32(process.t_max)]
        assert np.all(np.diff(grid(process, 1000)) < 0)


def test_logistic_is_flow_shift_with_an_open_end():
    process = schedules.RectifiedFlow()
    both = grids.flow_shift(process, 9, shift=3.0)
    assert_allclose(grids.logistic(process, 8, mean=np.log(3), scale=1.0), both[:-1], rtol=1e-5)
    with pytest.raises(UserError, match="above 0"):
        grids.logistic(process, 8, scale=0.0)


def test_auto_is_the_samplers_own_grid():
    """Every sampler names one that exists; an adaptive one has no other."""
    samplers = [make() for make in SAMPLERS.values()]
    for sampler in samplers:
        assert base.grid_spec("karras", sampler) == (
            sampler.grid if base.adaptive(sampler) else "karras"
        )
    for own in {base.grid_spec("auto", sampler) for sampler in samplers}:
        ts = build(components.GRIDS, own, schedules.VE(), 4)
        assert ts[0] == 1 and np.all(np.diff(ts) < 0), own
    assert (
        base.grid_spec("auto", few_step.multistep()) == "few_step()"
        and base.grid_spec("auto", adaptive.tsit5()) == "uniform()"
    )


def test_karras_grid_is_equation_5():
    i, rho = np.arange(18), 7
    sigma = (80 ** (1 / rho) + i / 17 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    assert_allclose(grids.karras(schedules.EDM(), 18) * 80, sigma, rtol=1e-5)


def test_strided_grids_are_diffusers_integers():
    """diffusers' timestep j is t = (j + 1) / N; the integers are worked out by hand."""
    chain = discrete.ddpm("cosine", steps=10)
    expected = {
        "leading": [6, 4, 2, 0],  # 10 // 4 = 2
        "linspace": [9, 6, 3, 0],
        "trailing": [9, 7, 4, 1],  # round(10, 7.5, 5, 2.5) - 1, halves to even: 10, 8, 5, 2
    }
    for name, j in expected.items():
        assert_allclose(
            GRIDS[name](chain, 4, steps=10), (np.array(j) + 1) / 10, rtol=1e-6, err_msg=name
        )
    assert_allclose(
        grids.leading(chain, 4, steps=10, offset=1), (np.array([7, 5, 3, 1]) + 1) / 10, rtol=1e-6
    )


@functools.cache
def _chain():
    return discrete.ddpm("linear")


@pytest.mark.parametrize("name", STRIDED)
def test_strided_grids_reject_what_does_not_fit(name):
    for n in (0, 11):
        with pytest.raises(UserError, match="between 1 and steps=10"):
            GRIDS[name](_chain(), n, steps=10)


def test_one_time_of_a_chain_is_its_last():
    """Noise is at the last time: from the first, one evaluation would take it for data."""
    for name in ("linspace", "trailing"):
        assert np.asarray(GRIDS[name](_chain(), 1, steps=10)) == [1.0], name
    with pytest.raises(UserError, match="use 'trailing'"):
        grids.leading(_chain(), 1, steps=10)


def test_grids_reject_too_many_points():
    with pytest.raises(UserError, match="leaves the chain"):
        grids.leading(_chain(), 10, steps=10, offset=1)
    with pytest.raises(UserError, match="ask for fewer points"):
        grids.uniform_logsnr(schedules.RectifiedFlow(t_min=0.9, t_max=0.900001), 1000)


def test_flow_shift_is_stable_diffusion_3s():
    """u -> shift u / (1 + (shift - 1) u) on the flow's time (Esser et al. 2024, eq. 23), once."""
    process = schedules.RectifiedFlow()
    u = np.linspace(
        *(t / (3 - 2 * t) for t in (process.t_max, process.t_min)), 9
    )  # its inverse at the ends
    assert_allclose(grids.flow_shift(process, 9), 3 * u / (1 + 2 * u), rtol=1e-5)
    assert_allclose(
        grids.flow_shift(process, 9, shift=1.0), grids.uniform(process, 9), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(UserError, match="at least 1e-06"):
        grids.flow_shift(process, 9, shift=0.0)


def test_align_your_steps_is_its_table_on_the_tables_own_range():
    process = schedules.VE(sigma_min=0.029, sigma_max=14.615)
    assert_allclose(
        process.sigma(grids.align_your_steps(process, 11)), grids.STEPS["sd15"], rtol=1e-4
    )
    between = np.sqrt(np.array(grids.STEPS["sdxl"])[:-1] * np.array(grids.STEPS["sdxl"])[1:])
    assert_allclose(
        process.sigma(grids.align_your_steps(process, 21, "sdxl"))[1::2], between, rtol=1e-4
    )
    with pytest.raises(UserError, match="did you mean 'sdxl'"):
        grids.align_your_steps(process, 11, "sdx")


# ---- times placed by gradient
MIXTURE = laws.ring_of_gaussians()


@functools.cache
def problem(seed, count=96):
    """Starts and exact solutions on the mixture, float64."""
    process = schedules.EDM()
    denoise = laws.denoise_mixture(MIXTURE, process)
    x = base.start(process, jax.random.key(seed), (count, 2), "float64")
    end = reference.reference(denoise, process, x, process.t_max, process.t_min, rtol=1e-8)
    return process, denoise, x, denoise(end, process.t_min).x0


@pytest.mark.parametrize("make", [ancestral.ddim, multistep.dpmpp_2m], ids=["ddim", "dpmpp_2m"])
def test_placed_times_beat_every_grid_on_other_starts(make):
    """The margin of three is what experiments.optimize_grid is held to."""
    with jax.enable_x64(True):
        process, denoise, x, truth = problem(0)
        other, other_truth = problem(1)[2:]
        run = jax.jit(
            lambda x, ts: base.sample(make(), denoise, process, jax.random.key(0), x, ts).x0
        )

        def error(ts):
            return float(jnp.sqrt(jnp.mean((run(other, ts) - other_truth) ** 2)))

        hand = [
            error(GRIDS[name](process, 8))
            for name in ("karras", "uniform_logsnr", "cosine", "quadratic")
        ]
        errors = []
        placed = placement.optimize(
            make(),
            denoise,
            process,
            jax.random.key(0),
            x,
            truth,
            grids.karras(process, 8),
            iterations=25,
            report=lambda i, e: errors.append(e),
        )
        assert (
            np.all(np.diff(placed.ts) < 0)
            and placed.ts[0] == process.t_max
            and placed.ts[-1] >= process.t_min
        )
        assert error(placed.ts) < min(hand) / (3 if make is multistep.dpmpp_2m else 1.5)
        assert (
            errors == list(placed.history)
            and np.all(np.diff(errors) <= 0)
            and placed.error == errors[-1]
        )


def test_polish_finds_the_times_of_the_least_score():
    """From even log-SNR steps to Karras's by their distance alone; never worse than the start."""
    process = schedules.VP()
    wanted, start = (
        gaussian.logsnr(process, make(process, 4)) for make in (grids.karras, grids.uniform_logsnr)
    )

    def far(ts):
        return float(jnp.abs(gaussian.logsnr(process, ts) - wanted).max())

    begun = float(jnp.abs(start - wanted).max())
    placed = placement.polish(far, process, grids.uniform_logsnr(process, 4), evaluations=150)
    assert placed.error == far(placed.ts) < 0.02 * begun and list(placed.history) == sorted(
        placed.history, reverse=True
    )
    assert placement.polish(far, process, grids.karras(process, 4), evaluations=3).error == far(
        grids.karras(process, 4)
    )


def test_optimize_refuses_what_it_cannot_do():
    process, x = schedules.EDM(), jnp.zeros((2, 2))
    denoise = laws.denoise_mixture(MIXTURE, process)
    for sampler, ts in (
        (ancestral.ddpm(), grids.karras(process, 4)),
        (ode.heun(), grids.karras(process, 1)),
    ):
        with pytest.raises(UserError, match="deterministic sampler and at least 2"):
            placement.optimize(sampler, denoise, process, jax.random.key(0), x, x, ts)


def test_stored_grids(tmp_path):
    process, path = schedules.VP(), tmp_path / "own.json"
    ts = grids.karras(process, 6)
    path.write_text(
        json.dumps({"logsnr": {"6": np.asarray(gaussian.logsnr(process, ts), float).tolist()}})
    )
    assert_allclose(grids.stored(process, 6, str(path)), ts, rtol=1e-4)
    assert_allclose(
        gaussian.logsnr(schedules.Cosine(), grids.stored(schedules.Cosine(), 6, str(path)))[1:-1],
        gaussian.logsnr(process, ts)[1:-1],
        rtol=1e-3,
    )
    with pytest.raises(UserError, match="grids of 6 times, not of 7"):
        grids.stored(process, 7, str(path))
    with pytest.raises(UserError, match="does not exist"):
        grids.stored(process, 6, str(tmp_path / "none.json"))
    path.write_text("{}")
    with pytest.raises(UserError, match="make it again"):
        grids.stored(process, 6, str(path))
