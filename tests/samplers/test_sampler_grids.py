"""Samplers on their own grids: the order at the end of a grid, and errors below those of DDIM."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.assembly import components, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.core import arrays
from diffusion_jax.core.types import Prediction
from diffusion_jax.processes import schedules
from diffusion_jax.samplers import (
    ancestral,
    base,
    grids,
    multistep,
    ode,
    sde,
    step_noise,
)
from diffusion_jax.targets import laws
from tests.families import PROCESSES, SAMPLERS, AnyOf

# a solver, what its last step is, and what the one before it is (test_parity.py has the others)
LOWERED = {
    "dpmpp_3m": (multistep.dpmpp_3m, sde.dpmpp_1(0.0), multistep.dpmpp_2m()),
    "ipndm": (multistep.ipndm, multistep.ipndm(1), multistep.ipndm(2)),
    "sde.dpmpp_3m": (sde.dpmpp_3m, sde.dpmpp_1(), sde.dpmpp_2m()),
}


@functools.partial(jax.jit, static_argnums=0)
def steps_of(sampler, ts, x=None):
    """x (n,) at the times ts under VP, from a denoiser that says the same whatever x is. x: of
    another path, from which each step starts.
    """
    process, start = schedules.VP(), jnp.ones((1, 1), ts.dtype)

    def said(y, t, cond):
        return Prediction(jnp.full_like(y, jnp.sin(3 * t)), jnp.full_like(y, jnp.cos(2 * t)))

    def move(carry, inputs):
        t, s, given = inputs
        now, memory = carry
        now = now if x is None else jnp.full_like(now, given)
        now, memory = sampler.step(
            step_noise.silence(start), now, memory, t, s, said, process, None
        )
        return (now, memory), now[0, 0]

    given = ts if x is None else x
    return jnp.append(
        1.0, jax.lax.scan(move, (start, sampler.init(start, ts)), (ts[:-1], ts[1:], given[:-1]))[1]
    )


@pytest.mark.parametrize("name", LOWERED)
def test_the_last_steps_are_of_lower_order_where_the_last_is_long(name):
    make, first, second = LOWERED[name]
    long, even = grids.uniform(schedules.VP(), 6), grids.uniform_logsnr(schedules.VP(), 6)
    lowered, kept = make(), make(lower_order_final=False)
    path, whole = steps_of(lowered, long), steps_of(kept, long)
    assert_allclose(path[-1], steps_of(first, long, path)[-1], rtol=1e-5)
    assert_allclose(path[-2], steps_of(second, long, path)[-2], rtol=1e-5)
    assert_allclose(path[:-2], whole[:-2], rtol=1e-6)
    assert abs(path[-1] - whole[-1]) > 1e-3
    assert_allclose(steps_of(lowered, even), steps_of(kept, even), rtol=1e-6)


HIGHER = {  # the deterministic solvers of order above 1 that take steps of their grid
    **{
        name: make
        for name, make in SAMPLERS.items()
        if name.partition(".")[0] in ("multistep", "singlestep", "ode") and name != "ode.euler"
    },
    **{
        f"sde.{name}(0)": functools.partial(getattr(sde, name), 0.0)
        for name in ("dpmpp_2m", "dpmpp_3m", "dpmpp_2s")
    },
    "sde.sa(0)": functools.partial(sde.sa, tau=0.0),
    **{
        f"multistep.unipc({order}, {variant})": functools.partial(multistep.unipc, order, variant)
        for order in (2, 3)
        for variant in ("bh1", "bh2")
    },
    "multistep.deis(logsnr)": functools.partial(multistep.deis, clock="logsnr"),
    "multistep.pndm(heun)": functools.partial(multistep.pndm, "heun"),
}


# by sampler and evaluations: the error in units of DDIM's where it is larger (docs/math.md, Grids)
BEHIND = {
    "ode.edm_heun": {
        10: {
            "Cosine": 1.59,
            "EDM": 1.51,
            "RectifiedFlow": 1.64,
            "Shifted": 1.57,
            "SubVP": 1.59,
            "TrigFlow": 1.51,
            "VE": 1.42,
            "VP": 1.42,
            "VDM": 1.55,
            "Shifted_flow": 1.63,
            "DDPM_linear": 1.42,
            "DDPM_cosine": 1.8,
        },
    },
    "ode.edm_rk4": {
        10: {
            "Cosine": 2.15,
            "EDM": 1.82,
            "RectifiedFlow": 2.48,
            "Shifted": 1.91,
            "SubVP": 2.88,
            "TrigFlow": 1.83,
            "VE": 1.63,
            "VP": 1.73,
            "VDM": 2.07,
            "Shifted_flow": 2.15,
            "DDPM_linear": 1.71,
            "DDPM_cosine": 2.82,
        },
        20: {
            "Shifted": 1.13,
            "VE": 1.23,
            "VP": 1.4,
            "Shifted_flow": 1.2,
            "DDPM_linear": 1.38,
            "DDPM_cosine": 1.51,
        },
    },
    "ode.heun": {10: {"EDM": 1.32, "VE": 41.35}, 20: {"VE": 7.67}},
    "ode.rk4": {10: {"EDM": 2.87, "VE": 97.2}, 20: {"VE": 8.03}},
}


QUICK = ("multistep.unipc",)


RING, RUNS = laws.ring_of_gaussians(), arrays.example_keys(jax.random.key(1), 64)


@functools.cache
def grid_of(spec, process, n):
    """The n times of the grid of this spec, which several samplers share."""
    return build(components.GRIDS, spec, process, n)


def mixture_errors(sampler, budgets, grid=None, exact=None):
    """RMS distance of the sampler's images of the mixture to the exact ones, (processes, budgets),
    from the same 64 starts in float64.

    grid: a spec; None: the sampler's own. exact: (processes, 64, 2); None: the images themselves
      are returned, of one budget.
    """
    lengths = [base.points(sampler, nfe) for nfe in budgets]

    @jax.jit
    def run(index, ts):
        process = AnyOf(index)
        x = base.start(process, RUNS, (64, 2), "float64")
        return base.sample(
            sampler, laws.denoise_mixture(RING, process), process, RUNS, x, ts, padded=True
        ).x0

    def images(i, process, n):
        ts = grid_of(grid or sampler.grid, process, n)
        return np.asarray(run(i, sampling.pad(jnp.asarray(ts, "float64"), max(lengths))))

    found = [
        [images(i, process, n) for n in lengths] for i, process in enumerate(PROCESSES.values())
    ]
    return (
        np.asarray(found)[:, 0]
        if exact is None
        else np.sqrt(np.mean((np.asarray(found) - exact[:, None]) ** 2, (2, 3)))
    )


@functools.cache
def of_ddim():
    """(the exact images, DDIM's errors at 10 and at 20 evaluations)."""
    exact = mixture_errors(ode.edm_rk4(), [801], "uniform_logsnr()")
    return exact, mixture_errors(ancestral.ddim(), [10, 20], exact=exact)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in HIGHER],
)
def test_no_higher_order_solver_is_worse_than_ddim(name):
    """At 10 and 20 evaluations, each on its own grid, under every process, but for BEHIND. PNDM's
    start alone takes 13 evaluations.
    """
    with jax.enable_x64(True):
        exact, ddim = of_ddim()
        budgets = [
            nfe for nfe in (10, 20) if nfe > sum(HIGHER[name]().warmup) + len(HIGHER[name]().warmup)
        ]
        assert len(budgets) == (1 if name == "multistep.pndm" else 2)
        ratios = mixture_errors(HIGHER[name](), budgets, exact=exact) / ddim[:, -len(budgets) :]
    for nfe, found in zip(budgets, ratios.T):
        behind = BEHIND.get(name, {}).get(nfe, {})
        for process, ratio in zip(PROCESSES, found):
            if process in behind:
                assert_allclose(
                    ratio, behind[process], rtol=0.02, err_msg=f"{process}, {nfe} evaluations"
                )
            else:
                assert ratio <= 1, (process, nfe)
