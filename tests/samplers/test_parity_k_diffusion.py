"""Samplers against EDM's code and k-diffusion, and singlestep solvers against both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.processes import schedules
from diffusion_jax.samplers import (
    adaptive,
    ancestral,
    grids,
    multistep,
    ode,
    sde,
    singlestep,
    stochastic,
)
from tests.samplers.parity import (
    KEPT,
    Ratio,
    compare,
    fixture,
    grid_of,
    mixture_denoiser,
    run_ratios,
    walk,
)


@pytest.mark.parametrize("n", [5, 18])
@pytest.mark.parametrize("churn", [False, True], ids=["heun", "churn"])
def test_edm_sampler_equals_nvlabs(n, churn):
    case = f"edm/{n}" + "/churn" * churn
    stored, cases = fixture("edm")
    kwargs = {k: v for k, v in cases[case]["config"].items() if k.startswith("S_")}
    with jax.enable_x64(True):
        process = schedules.EDM()
        ts, denoise = grids.karras(process, n), mixture_denoiser(stored, process)
        assert_allclose(ts[0] * 80, cases[case]["x_T_scale"], rtol=1e-6)
        x = cases[case]["x_T_scale"] * jnp.asarray(stored["z"], "float64")
        path = walk(
            sde.edm(**kwargs) if churn else ode.edm_heun(),
            process,
            denoise,
            x,
            ts,
            jnp.asarray(stored["noise"], "float64"),
        )
        compare(path + [denoise(path[-1], ts[-1]).x0], stored, case)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("baseline", ["edm", "ddim", "vp"])
def test_edms_baselines_equal_nvlabs(baseline, solver):
    """Solvers in t on EDM's path, and on the VP path of Song et al.; there their very last step is
    in t too, not x0-hat, and is left out.
    """
    case = f"ablation/{baseline}/{solver}"
    stored, cases = fixture("edm")
    about = cases[case]
    with jax.enable_x64(True):
        sigma = stored[about["net_sigma"]][about["first_call_of_step"]]
        if baseline == "vp":
            process, ts = schedules.VP(), jnp.linspace(1.0, 1e-3, len(sigma))
            assert_allclose(
                process.sigma(ts) / process.alpha(ts), sigma, rtol=1e-5
            )  # theirs is cast on the way
        else:
            process, ts = schedules.EDM(), jnp.asarray(sigma / 80)
        denoise = mixture_denoiser(stored, process)
        x = about["x_T_scale"] * jnp.asarray(stored["z"], "float64")
        path = walk(getattr(ode, solver)(), process, denoise, x, ts, jnp.zeros((len(ts), 1)))
        if baseline == "vp":
            ours, theirs = np.stack([y[0] for y in path]), stored[f"{case}/path"][:-1]
            assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        else:
            compare(path + [denoise(path[-1], ts[-1]).x0], stored, case)


K_DIFFUSION = {
    "euler": ancestral.ddim(),
    "heun": ode.edm_heun(),
    "dpm_2": ode.midpoint(),
    "dpmpp_2m": multistep.dpmpp_2m(**KEPT),
    "dpmpp_2s_ancestral/eta0": singlestep.dpmpp_2s(),
    "dpmpp_3m_sde/eta0": sde.dpmpp_3m(0.0, 0.5, "exact", **KEPT),
    "euler_ancestral": ancestral.euler_ancestral(),
    "dpmpp_sde": sde.dpmpp_2s(),
    "dpmpp_2m_sde": sde.dpmpp_2m(**KEPT),
    "dpmpp_2m_sde/eta0.5": sde.dpmpp_2m(0.5, **KEPT),
    "dpmpp_2m_sde/heun": sde.dpmpp_2m(second="exact", **KEPT),
    "dpmpp_3m_sde": sde.dpmpp_3m(curvature=0.5, second="exact", **KEPT),
    "euler_ancestral/eta1.5": ancestral.euler_ancestral(1.5),
    "dpmpp_sde/eta1.5": sde.dpmpp_2s(1.5),
    "dpm_2_ancestral": stochastic.ancestral(ode.midpoint()),
    "dpm_2_ancestral/eta0.5": stochastic.ancestral(ode.midpoint(), 0.5),
    "dpmpp_2s_ancestral": stochastic.ancestral(singlestep.dpmpp_2s()),
    "dpmpp_2s_ancestral/eta0.5": stochastic.ancestral(singlestep.dpmpp_2s(), 0.5),
    **{
        f"{name}/churn": stochastic.churned(sampler, 5.0, 0.05, 10.0)
        for name, sampler in (
            ("euler", ancestral.ddim()),
            ("heun", ode.edm_heun()),
            ("dpm_2", ode.midpoint()),
        )
    },
}


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("case", K_DIFFUSION)
def test_samplers_equal_k_diffusion(case, n):
    run_ratios("k_diffusion", f"{case}/{n}", K_DIFFUSION[case], False)


def test_euler_ancestral_by_the_wrapper_equals_k_diffusion():
    """One grid: it is ancestral.euler_ancestral's own step."""
    run_ratios("k_diffusion", "euler_ancestral/10", stochastic.ancestral(ancestral.ddim()), False)


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_equals_k_diffusion(order):
    """The same steps for every example, which shows in the number of evaluations. Theirs runs every
    example by itself.
    """
    stored, cases = fixture("k_diffusion")
    about, sampler = cases[f"dpm_adaptive/{order}"], adaptive.dpm_adaptive(order)
    with jax.enable_x64(True):
        process, x = Ratio(False), 20.0 * jnp.asarray(stored["z"], "float64")
        ts = (jnp.log(jnp.asarray([20.0, 0.02])) + 8) / 16
        denoise = mixture_denoiser(stored, process)
        found, spent = jax.jit(
            lambda x: sampler.step(None, x, sampler.init(x, ts), *ts, denoise, process, None)
        )(x)
        assert spent.tolist() == about["evaluations"] and len(set(about["evaluations"])) > 1
        assert_allclose(found, stored[f"dpm_adaptive/{order}/x"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "name, grid", [("karras", grids.karras), ("exponential", grids.uniform_logsnr)]
)
def test_grids_equal_k_diffusion(name, grid):
    with jax.enable_x64(True):
        process = schedules.VE(sigma_min=0.02, sigma_max=20.0)
        assert_allclose(
            process.sigma(grid(process, 10)),
            fixture("k_diffusion")[0][f"sigmas/{name}/10"][:-1],
            rtol=1e-9,
        )


@pytest.mark.parametrize("case, order", [("lms/10", 4), ("lms/order2/20", 2)])
def test_lms_equals_k_diffusion(case, order):
    """The last step is left out, because theirs extrapolates to sigma = 0.

    Their quadrature is adaptive and accurate to 1e-8.
    """
    run_ratios("k_diffusion", case, multistep.lms(order, **KEPT), False, drop=1, rtol=1e-7)


def walk_blocks(case, orders, choose, unit, file, opened=False):
    """Our x after each block of calls and theirs there, of the first example: a block is one step
    of its last call's order, which looks at the grid's points between.

    choose(order, ratios of the looks) -> Sampler. opened: the denoiser is asked at THEIR points,
    whatever ours are.
    """
    stored, cases = fixture(file)
    lam = -jnp.log(grid_of(stored, cases[case]))
    ts, theirs = (8 - lam) / 16, jnp.asarray(stored[f"{case}/path"])
    process = Ratio(unit)
    exact = mixture_denoiser(stored, process)
    denoise = (
        exact
        if not opened
        else lambda x, t, cond: exact(theirs[jnp.argmin(jnp.abs(ts - t))][None], t)
    )
    x, i, path = theirs[:1], 0, []
    for order in orders:
        looks = tuple(
            float((lam[i + k] - lam[i]) / (lam[i + order] - lam[i])) for k in range(1, order)
        )
        x = choose(order, looks).step(None, x, (), ts[i], ts[i + order], denoise, process, None)[0]
        i += order
        path.append((x[0], theirs[i]))
    return path


def blocks(order_list):
    """The lengths of the runs 1, 2, .. p in diffusers' list of orders."""
    ends = [i + 1 for i, order in enumerate(order_list) if order_list[i + 1 : i + 2] in ([], [1])]
    return np.diff([0, *ends]).tolist()


def assert_blocks(path, rtol=1e-9):
    for ours, theirs in path:
        assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


SINGLESTEP = {
    "dpmsolver++": (singlestep.dpmpp_2s, singlestep.dpmpp_3s),
    "dpmsolver": (singlestep.dpm_2s, singlestep.dpm_3s),
}


@pytest.mark.parametrize("kind, n", [("dpmsolver++", 10), ("dpmsolver", 12)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_solvers_equal_diffusers(kind, n, order):
    """Order 3 with their values inside a step: on the way to the second look they take the midpoint
    rule, the paper and we the exact line.
    """
    case = f"singlestep/{kind}/{order}/{n}"
    about = fixture("diffusers_ode")[1][case]
    orders = blocks(about["order_list"])
    if about["config"]["final_sigmas_type"] == "zero":
        assert orders.pop() == 1  # to sigma = 0: x0-hat
    with jax.enable_x64(True):

        def choose(p, looks):
            return ancestral.ddim() if p == 1 else SINGLESTEP[kind][p - 2](*looks)

        assert_blocks(walk_blocks(case, orders, choose, True, "diffusers_ode", opened=order == 3))


@pytest.mark.parametrize("n, orders", [(10, [3, 3, 3, 1]), (20, [3] * 6 + [2])])
def test_singlestep_orders_equal_k_diffusions_dpm_fast(n, orders):
    """DPM-Solver-fast: uniform log sigma, looks at thirds (order 3) and at the half, as many
    evaluations as asked.
    """
    stored, cases = fixture("k_diffusion")
    theirs, steps = stored[f"dpm_fast/{n}/path"], len(orders)
    samplers = {1: ancestral.ddim(), 2: singlestep.dpm_2s(), 3: singlestep.dpm_3s()}
    with jax.enable_x64(True):
        process = Ratio(False)
        ts, denoise = (
            (jnp.linspace(np.log(20.0), np.log(0.02), steps + 1) + 8) / 16,
            mixture_denoiser(stored, process),
        )
        x, path = jnp.asarray(theirs[:1]), []
        for i, order in enumerate(orders):
            x = samplers[order].step(None, x, (), ts[i], ts[i + 1], denoise, process, None)[0]
            path.append((x[0], theirs[i + 1]))
        assert_blocks(path)
