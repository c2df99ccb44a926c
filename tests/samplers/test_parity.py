"""Samplers against diffusers: one-step and multistep solvers, and its flow and PNDM schedulers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.processes import discrete
from diffusion_jax.samplers import (
    ancestral,
    grids,
    multistep,
    ode,
    sde,
)
from tests.samplers.parity import (
    KEPT,
    VARIANCES,
    compare,
    fixture,
    gaps,
    grid_of,
    mixture_denoiser,
    run_ratios,
    run_table,
    walk,
)


@pytest.mark.parametrize("steps, eta", [(10, 0.0), (10, 0.5), (10, 1.0), (50, 0.0), (50, 1.0)])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_equals_diffusers(spacing, steps, eta):
    run_table("diffusers_ddim", f"{spacing}/{steps}/eta{eta:g}", ancestral.ddim(eta))


@pytest.mark.parametrize(
    "variant, eta",
    [
        ("eta0/sample", 0.0),
        ("eta0/v_prediction", 0.0),
        ("eta0.5/v_prediction", 0.5),
        ("eta0/offset1", 0.0),
        ("eta0/offset1_alpha_one_false", 0.0),
        ("eta0/clip_consistent", 0.0),
        ("eta1/clip_consistent", 1.0),
    ],
)
def test_ddim_variants_equal_diffusers(variant, eta):
    run_table("diffusers_ddim", f"leading/10/{variant}", ancestral.ddim(eta))


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("grid", ["leading/20", "linspace/20", "all50"])
def test_ddpm_equals_diffusers(grid, variance):
    run_table("diffusers_ddpm", f"{grid}/{variance}", ancestral.ddpm(VARIANCES[variance]))


@pytest.mark.parametrize(
    "variant", ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "v_prediction", "clip"]
)
def test_ddpm_variants_equal_diffusers(variant):
    run_table("diffusers_ddpm", f"leading/20/fixed_small/{variant}", ancestral.ddpm("small"))


@pytest.mark.parametrize(
    "file, case",
    [
        ("diffusers_ddim", "leading/10/eta0"),
        ("diffusers_ddim", "trailing/50/eta0"),
        ("diffusers_ddim", "linspace/10/eta0"),
        ("diffusers_ddim", "trailing/30/eta0"),
        ("diffusers_ddpm", "linspace/20/fixed_small"),
        ("diffusers_ddim", "leading/10/eta0/offset1"),
    ],
)
def test_strided_grids_are_diffusers_timesteps(file, case):
    j = np.array(fixture(file)[1][case]["timesteps"])
    grid = getattr(grids, case.split("/")[0])
    options = {"offset": 1} if case.endswith("offset1") else {}
    assert_allclose(grid(discrete.ddpm("linear"), len(j), **options), (j + 1) / 1000, rtol=1e-6)


MULTISTEP = {
    # their last step leads to sigma = 0, of order 1 whatever the options: ours to x0-hat
    "dpm/dpmsolver++/2/10": multistep.dpmpp_2m(**KEPT),
    "dpm/dpmsolver++/2/karras/10": multistep.dpmpp_2m(**KEPT),
    "dpm/dpmsolver++/2heun/20": multistep.dpmpp_2m("exact", **KEPT),
    "dpm/dpmsolver++/3/20": multistep.dpmpp_3m(0.5, **KEPT),
    # to the table's lowest sigma. DPM-Solver and DEIS lower the order there in fewer than 15 steps,
    # UniPC in any number
    **{
        f"dpm/dpmsolver++/{p}/sigma_min/10": sampler
        for p, sampler in ((2, multistep.dpmpp_2m(**KEPT)), (3, multistep.dpmpp_3m(0.5, **KEPT)))
    },
    **{
        f"dpm/dpmsolver/{name}/{n}": make(option, **options)
        for n, options in ((10, {}), (20, KEPT))
        for name, make, option in (
            ("2", multistep.dpm_2m, "midpoint"),
            ("2heun", multistep.dpm_2m, "exact"),
            ("3", multistep.dpm_3m, 0.5),
        )
    },
    **{
        f"deis/{p}/{n}": multistep.deis(p, "logsnr", **options)
        for n, options in ((10, {}), (20, KEPT))
        for p in (1, 2, 3)
    },
    **{
        f"unipc/{b}/{p}/{n}": multistep.unipc(p, b)
        for b in ("bh1", "bh2")
        for p in (1, 2, 3)
        for n in (10, 20)
    },
}


@pytest.mark.parametrize("case", MULTISTEP)
def test_multistep_solvers_equal_diffusers(case):
    run_ratios("diffusers_multistep", case, MULTISTEP[case], True)


def test_ipndm_equals_diffusers():
    run_ratios("diffusers_ode", "ipndm/betas/10", multistep.ipndm(**KEPT), True, drop=1)


SIGMA_SOLVERS = {"euler": ancestral.ddim(), "heun": ode.edm_heun(), "lms": multistep.lms(4, **KEPT)}


@pytest.mark.parametrize("grid", ["10", "karras/10"])
@pytest.mark.parametrize("name", SIGMA_SOLVERS)
def test_sigma_solvers_equal_diffusers(name, grid):
    drop, rtol = (1, 1e-7) if name == "lms" else (0, 1e-9)  # as for k-diffusion's
    run_ratios("diffusers_ode", f"{name}/{grid}", SIGMA_SOLVERS[name], False, drop, rtol)


def test_euler_ancestral_equals_diffusers():
    run_ratios("diffusers_ode", "euler_ancestral/10", ancestral.euler_ancestral(), False)


@dataclasses.dataclass(frozen=True)
class Line:
    """Rectified flow from t = 1, where theirs starts; ours stays off it."""

    t_min: float
    t_max: float = 1.0

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return jnp.asarray(t)


@pytest.mark.parametrize("variant", ["", "/sigmas"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_equals_diffusers(shift, variant):
    """The grid too: flow_shift between the ends that they have (they shift the ends of a plain one
    twice).
    """
    case = f"flow_euler/shift{shift:g}{variant}/10"
    stored, cases = fixture("diffusers_ode")
    with jax.enable_x64(True):
        sigmas = stored[cases[case]["sigmas"]].astype("float64")[:-1]
        process = Line(t_min=float(sigmas[-1]))
        ts, denoise = grids.flow_shift(process, 10, shift), mixture_denoiser(stored, process)
        assert_allclose(ts, sigmas, rtol=1e-9)
        path = walk(
            ode.euler(),
            process,
            denoise,
            jnp.asarray(stored["z"], "float64"),
            ts,
            jnp.zeros((10, 1)),
        )
        compare(path + [denoise(path[-1], ts[-1]).x0], stored, case)


@pytest.mark.parametrize(
    "case, start, whole",
    [
        ("pndm/10", "runge_kutta", [0, 4, 8, *range(12, 19)]),
        ("plms/10", "heun", [0, *range(2, 11)]),
    ],
)
def test_pndm_equals_diffusers(case, start, whole):
    """Every whole step but the last: to alpha-bar = 1 they move along the mixture of eps, not to
    x0-hat.
    """
    stored, cases = fixture("diffusers_ode")
    with jax.enable_x64(True):
        process = discrete.ddpm("linear")
        calls = jnp.asarray(cases[case]["timesteps"], "float64")
        ts = (calls[jnp.asarray(whole)] + 1) / 1000
        x = jnp.asarray(stored["z"], "float64")
        path = walk(
            multistep.pndm(start, **KEPT),
            process,
            mixture_denoiser(stored, process),
            x,
            ts,
            jnp.zeros((10, 1)),
        )
        for ours, theirs in zip(path, stored[f"{case}/path"][jnp.asarray(whole)], strict=True):
            assert_allclose(ours[0], theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize(
    "name, sampler",
    [
        ("1", sde.dpmpp_1()),
        ("2", sde.dpmpp_2m(**KEPT)),
        ("2heun", sde.dpmpp_2m(second="exact", **KEPT)),
    ],
)
def test_sde_dpmpp_equals_diffusers(name, sampler, n):
    run_ratios("diffusers_multistep", f"dpm/sde-dpmsolver++/{name}/{n}", sampler, True)


@pytest.mark.parametrize("curvature", [1.0, 0.5])
def test_sde_dpmpp_3_of_diffusers_is_not_ours(curvature):
    """A sign there makes the second difference weigh -alpha as h -> 0 (fixtures/README.md): it is
    of first order.
    """
    with jax.enable_x64(True):
        gap = gaps(
            "diffusers_multistep",
            "dpm/sde-dpmsolver++/3/10",
            sde.dpmpp_3m(curvature=curvature),
            True,
        )
    assert (
        gap[1] < 1e-12 and gap[3:].min() > 1e-3 and gap.max() > 0.3
    )  # the first step is of order 1 and agrees


def test_sa_equals_diffusers():
    run_ratios("diffusers_multistep", "sa/11/tau1/10", sde.sa(1, 1, tau=1.0), True)


def test_sa_with_tau_a_function_of_time_equals_diffusers():
    """tau = 0.8 for their timesteps from 200 to 800, and 0 outside: as S_min and S_max, and as a
    function of time.
    """
    stored, cases = fixture("diffusers_multistep")
    about = cases["sa/11/tau0.8_200_800/10"]
    inside = np.array([200 <= t <= 800 for t in about["timesteps"]])
    noisy = grid_of(stored, about)[: len(inside)][inside]
    assert 0 < len(noisy) < len(inside)
    low, high = float(noisy.min() * 0.999), float(noisy.max() * 1.001)
    run_ratios("diffusers_multistep", "sa/11/tau0.8_200_800/10", sde.sa(1, 1, 0.8, low, high), True)

    def tau(t):
        return jnp.where((jnp.exp(16 * t - 8) > low) & (jnp.exp(16 * t - 8) < high), 0.8, 0.0)

    run_ratios("diffusers_multistep", "sa/11/tau0.8_200_800/10", sde.sa(1, 1, tau), True)


@pytest.mark.parametrize("order", [4, 3])
def test_sa_of_high_order_equals_diffusers_after_its_start(order):
    """Theirs has an O(h^3) term wherever an order is 2: here while the order rises. Later
    corrections forget it, to 1e-5.

    The step before the last is of order 2 again. The bound refuses a corrector of one order less;
    sa/22, where the term is in every step, has no bound that a wrong order would break, and is left
    out.
    """
    with jax.enable_x64(True):
        gap = gaps("diffusers_multistep", "sa/34/tau1/10", sde.sa(3, order, tau=1.0), True)
    assert gap[:2].max() < 1e-12 and 1e-5 < gap[2] < 2e-4  # step 2 has the term
    assert (gap[4:9].max() < 1e-5) == (order == 4)
