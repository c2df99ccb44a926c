"""The samplers against the programs of others: the same exact denoiser, grid and noise
(fixtures/README.md), in float64.

The recorded noise goes in where ours is drawn, so it is Sampler.step that is compared;
`base.sample`, the loop, has tests of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.denoisers import guidance, parameterization
from diffusion_jax.denoisers.parameterization import decode, target
from diffusion_jax.processes import discrete, schedules
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
    stochastic,
)
from diffusion_jax.targets import laws

FOLDER = Path(__file__).parents[1] / "fixtures"

PAIRS = {
    "epsilon": parameterization.eps(),
    "epsilon+nu": parameterization.eps(),
    "sample": parameterization.x0(),
    "v_prediction": parameterization.v(),
}

TABLES = {"squaredcos_cap_v2": "cosine"}  # diffusers' name for it: ours
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}


@functools.cache
def fixture(name):
    stored = dict(np.load(FOLDER / f"{name}.npz"))
    return stored, json.loads(str(stored["meta"]))["cases"]


DENOISERS = {}  # by fixture and arguments, so that cases of one fixture share their compiled steps


def mixture_denoiser(stored, process, kind="sample", clip=False):
    """The exact denoiser behind a network of this prediction type, clipped if asked."""
    key = (id(stored), process, kind, clip)
    if key not in DENOISERS:
        DENOISERS[key] = _mixture_denoiser(stored, process, kind, clip)
    return DENOISERS[key]


def _mixture_denoiser(stored, process, kind, clip):
    law = laws.Mixture(
        *(jnp.asarray(stored[k], "float64") for k in ("weights", "means", "variances"))
    )
    exact, pair = laws.denoise_mixture(law, process), PAIRS[kind]

    def denoise(x, t, cond=None):
        t = jnp.broadcast_to(t, x.shape[:1])
        prediction = decode(pair, process, target(pair, process, exact(x, t), t), x, t)
        return (
            prediction._replace(nu=jnp.tanh(x @ stored["nu_matrix"].T))
            if kind == "epsilon+nu"
            else prediction
        )

    return guidance.clip_x0(denoise, process) if clip else denoise


@functools.cache
def compiled(sampler, process, denoise):
    """One step of the sampler with the noise that it is given, (B, ...) or one per part."""

    @jax.jit
    def step(x, memory, z, t, s):
        fixed = base.Noise(lambda t, s, part=0: z[part] if z.ndim > x.ndim else z, lambda i: z)
        return sampler.step(fixed, x, memory, t, s, denoise, process, None)

    return step


def walk(sampler, process, denoise, x, ts, noise):
    """x before the first and after each step along ts, float64; noise[i] is what step i draws, (B,
    ...) or one per part.
    """
    step = compiled(sampler, process, denoise)
    path, memory = [x], sampler.init(x, ts)
    for i in range(len(ts) - 1):
        x, memory = step(path[-1], memory, noise[i], ts[i], ts[i + 1])
        path.append(x)
    return path


def compare(path, stored, case, rtol=1e-9):
    """The first example along the way, relative to its size there; and every example at the end."""
    theirs = stored[f"{case}/path"]
    assert len(path) == len(theirs)
    for ours, step in zip(path, theirs):
        assert_allclose(ours[0], step, rtol=rtol, atol=rtol * np.abs(step).max())
    assert_allclose(
        path[-1], stored[f"{case}/x"], rtol=rtol, atol=rtol * np.abs(stored[f"{case}/x"]).max()
    )


def run_table(file, case, sampler, rtol=1e-9):
    """A scheduler of diffusers on its table of alpha-bar; its last step, to alpha-bar = 1, is our
    x0-hat.
    """
    stored, cases = fixture(file)
    about, levels = cases[case], stored[cases[case]["alpha_bar"]]
    assert np.array_equal(levels[:-1, 1], levels[1:, 0]), (
        "this grid is not walked along, but beside"
    )
    config, steps = about["config"], about["config"]["num_train_timesteps"]
    with jax.enable_x64(True):
        process = discrete.ddpm(TABLES.get(config["beta_schedule"], config["beta_schedule"]), steps)
        clip = config["clip_sample"]
        denoise = mixture_denoiser(stored, process, about["network"], clip)
        ts = (jnp.asarray(about["timesteps"], "float64") + 1) / steps
        assert_allclose(process.alpha(ts) ** 2, levels[:, 0], rtol=1e-9)
        to_data = levels[-1, 1] == 1.0
        ts = ts if to_data else jnp.append(ts, 1 / steps)
        x = about["x_T_scale"] * jnp.asarray(stored["z"], "float64")
        path = walk(sampler, process, denoise, x, ts, jnp.asarray(stored["noise"], "float64"))
        compare(path + [denoise(path[-1], ts[-1]).x0] * int(to_data), stored, case, rtol)


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


# ---- multistep: grids given as sigma / alpha
@dataclasses.dataclass(frozen=True)
class Ratio:
    """A path on which sigma / alpha = exp(-8 + 16 t): of unit variance, as diffusers has it, or
    with alpha = 1.
    """

    unit: bool
    t_min: float = 0.0
    t_max: float = 1.0

    def ratio(self, t):
        return jnp.exp(16 * t - 8)

    def alpha(self, t):
        return (1 + self.ratio(t) ** 2) ** -0.5 if self.unit else jnp.ones_like(t)

    def sigma(self, t):
        return self.ratio(t) * self.alpha(t)


def grid_of(stored, about):
    """sigma / alpha along a case's grid, float64."""
    if "sigma_t" in about:
        return stored[about["sigma_t"]] * (1 - stored[about["sigma_t"]] ** 2) ** -0.5
    return stored[about["sigmas"]].astype("float64")


def noise_of_steps(stored, about, ratios):
    """What each step draws: (steps, B, D). Where it draws two, for [t, middle] and for [t, s]: the
    increments of the two halves, (steps, 2, B, D).
    """
    pool, draws = stored["noise"].astype("float64"), np.array(about["draws"])
    rows = np.minimum(np.cumsum(draws) - draws, len(pool) - 1)  # the first of each step's
    if max(draws) < 2:
        return jnp.asarray(pool[rows])
    first, whole, interval = (
        pool[rows],
        pool[np.minimum(rows + 1, len(pool) - 1)],
        stored[about["noise_interval"]],
    )
    t, s, middle = (
        ratios[: len(interval) // 2],
        ratios[1 : len(interval) // 2 + 1],
        interval[::2, 1],
    )
    share = ((middle**-2 - t**-2) / (s**-2 - t**-2))[
        :, None, None
    ]  # of the variance of the driving Brownian motion
    first, whole = first[: len(share)], whole[: len(share)]
    return jnp.asarray(np.stack([first, (whole - share**0.5 * first) / (1 - share) ** 0.5], 1))


def walk_ratios(file, case, sampler, unit):
    """Our path and theirs on a stored grid of sigma / alpha, and their end; to a last one of 0 we
    move by x0-hat.

    Their points inside a step are left out.
    """
    stored, cases = fixture(file)
    about = cases[case]
    ratios = grid_of(stored, about)
    whole = np.append(
        np.flatnonzero(np.diff(ratios)), len(ratios) - 1
    )  # a level is repeated where two calls make a step
    ratios = ratios[whole]
    process, denoise = Ratio(unit), mixture_denoiser(stored, Ratio(unit))
    ts = (jnp.log(ratios[ratios > 0]) + 8) / 16
    x = about["x_T_scale"] * jnp.asarray(stored["z"], "float64")
    path = walk(sampler, process, denoise, x, ts, noise_of_steps(stored, about, ratios))
    if ratios[-1] == 0:
        path.append(denoise(path[-1], ts[-1]).x0)
    return [np.asarray(x) for x in path], stored[f"{case}/path"][whole], stored[f"{case}/x"]


def run_ratios(file, case, sampler, unit, drop=0, rtol=1e-9):
    """A solver on its stored grid of sigma / alpha. drop: last steps that are made otherwise there."""
    with jax.enable_x64(True):
        path, theirs, final = walk_ratios(file, case, sampler, unit)
    assert len(path) == len(theirs)
    for ours, step in zip(path[: len(path) - drop], theirs):
        assert_allclose(ours[0], step, rtol=rtol, atol=rtol * np.abs(step).max())
    if not drop:
        assert_allclose(path[-1], final, rtol=rtol, atol=rtol)


KEPT = {"lower_order_final": False}

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
    """But for the last step: theirs extrapolates to sigma = 0. Their quadrature is adaptive, good
    to 1e-8.
    """
    run_ratios("k_diffusion", case, multistep.lms(order, **KEPT), False, drop=1, rtol=1e-7)


def test_ipndm_equals_diffusers():
    run_ratios("diffusers_ode", "ipndm/betas/10", multistep.ipndm(**KEPT), True, drop=1)


# ---- diffusers: sigma solvers, flow, PNDM
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


# ---- diffusers: stochastic solvers
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


def gaps(file, case, sampler, unit):
    """The largest difference after each step, of the first example: (S + 1,)."""
    path, theirs, _ = walk_ratios(file, case, sampler, unit)
    return np.array([np.abs(ours[0] - step).max() for ours, step in zip(path, theirs)])


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


# ---- singlestep
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


# ---- SiT
SIT_PATHS = {"Linear": schedules.RectifiedFlow(), "GVP": schedules.Cosine(), "VP": schedules.VP()}

SIT_NAMES = {
    "SBDM": "sde",
    "inccreasing-decreasing": "increasing_decreasing",
}  # theirs, spelled so: ours

SIT_FORMS = ("constant", "SBDM", "sigma", "linear", "decreasing", "inccreasing-decreasing")

SIT_CASES = [
    *(f"Linear/{form}/{norm}" for form in SIT_FORMS for norm in ("1", "0.4")),
    *(f"{path}/{form}/1" for path in ("GVP", "VP") for form in ("SBDM", "decreasing")),
]


@pytest.mark.parametrize("case", SIT_CASES)
def test_interpolants_equal_sit(case):
    """Every shape and scale on the linear path, and two shapes on theirs of constant variance;
    their clock has data at t = 1.

    Their norm of 'decreasing' is inside its square, 0.25 (norm cos(pi t) + 1)^2, where ours is a
    factor as for the others.
    """
    (stored, cases), (path, form, norm) = fixture("sit"), case.split("/")
    sampler = sde.interpolant(SIT_NAMES.get(form, form), float(norm))
    with jax.enable_x64(True):
        process, ts = SIT_PATHS[path], jnp.asarray(stored[cases[case]["times"]])
        denoise = mixture_denoiser(stored, process)
        x, noise = (jnp.asarray(stored[name], "float64") for name in ("z", "noise"))
        steps = walk(sampler, process, denoise, x, ts, noise)
        steps = [*steps, denoise(steps[-1], ts[-1]).x0]
    if (form, norm) == ("decreasing", "0.4"):
        with pytest.raises(AssertionError):
            compare(steps, stored, case)
    else:
        compare(steps, stored, case)


# ---- score_sde: single updates
@dataclasses.dataclass(frozen=True)
class Move:
    """A process of two times, 0 and 1: (alpha, sigma) is given at one, and x_1 ~ N(sqrt(1 - beta)
    x_0, beta) gives the other.

    score_sde looks beta up in a table, beta(t) / N, which is not the transition of the continuous
    VP whose score it takes.
    """

    alpha_known: float
    sigma_known: float
    beta: float
    known: int
    t_min: float = 0.0
    t_max: float = 1.0

    def alpha(self, t):
        a, keep = self.alpha_known, (1 - self.beta) ** 0.5
        return jnp.where(t < 0.5, *((a / keep, a) if self.known else (a, a * keep)))

    def sigma(self, t):
        v, keep = self.sigma_known**2, 1 - self.beta
        early, late = ((v - self.beta) / keep, v) if self.known else (v, v * keep + self.beta)
        return jnp.where(t < 0.5, early, late) ** 0.5


SDES = {"vp": schedules.VP(), "subvp": schedules.SubVP(), "ve": schedules.VE()}

UPDATES = {
    "euler_maruyama": sde.euler_maruyama(),
    "reverse_diffusion": sde.reverse_diffusion(),
    "ancestral": {"vp": ancestral.ddpm("large"), "ve": ancestral.ddpm("small")},
    "langevin": corrector.langevin,
    "annealed_langevin": corrector.annealed_langevin,
}


def our_update(case, about):
    """(sampler or corrector, process, t, s) that stand for this update."""
    (name, update, *_), t, N = case.split("/"), about["t"], about["N"]
    process, ours = SDES[name], UPDATES[update]
    ours = ours[name] if isinstance(ours, dict) else ours
    corrects = "langevin" in update
    ours = ours(about["snr"], about["n_steps"]) if corrects else ours
    if update == "euler_maruyama" or name == "subvp":
        return (
            sde.euler_maruyama(),
            process,
            t,
            t - 1 / N,
        )  # their sub-VP has no other discretisation
    if name == "vp":
        at = [float(level(jnp.asarray(t))) for level in (process.alpha, process.sigma)]
        return ours, Move(*at, about["beta"], known=0 if corrects else 1), 1.0, 0.0
    return (ours, process, t, t) if corrects else (ours, process, t, t - 1 / (N - 1))


BOTH = ["euler_maruyama", "reverse_diffusion"]
MORE = ["ancestral", "langevin/1", "langevin/2", "annealed_langevin/1", "annealed_langevin/2"]


@pytest.mark.parametrize("t", ["1", "0.5", "0.0625"])
@pytest.mark.parametrize(
    "update", [f"{name}/{u}" for name in SDES for u in (BOTH if name == "subvp" else BOTH + MORE)]
)
def test_updates_equal_score_sde(update, t):
    (stored, cases), case = fixture("score_sde"), f"{update}/{t}"
    with jax.enable_x64(True):
        ours, process, t, s = our_update(case, cases[case])
        pool = jnp.asarray(stored["noise"], "float64")
        noise = base.Noise(lambda t, s, part=0: pool[0], lambda i: pool[i])
        x = cases[case]["x_T_scale"] * jnp.asarray(stored["z"], "float64")
        memory = () if isinstance(ours, corrector.Corrector) else ((),)
        found = ours.step(
            noise,
            x,
            *memory,
            *map(jnp.asarray, (t, s)),
            mixture_denoiser(stored, process),
            process,
            None,
        )
        assert_allclose(found[0] if memory else found, stored[f"{case}/x"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [corrector.langevin, corrector.annealed_langevin])
def test_correctors_run_on_sub_vp(make):
    """score_sde's do not (its issue 8). Started at the law of x_s, a step keeps its variance;
    without a score it adds 4 %.
    """
    process, s = schedules.SubVP(), jnp.asarray(0.3)
    law = laws.Mixture(jnp.ones(1), jnp.zeros((1, 64)), jnp.ones((1, 64)))
    z, first = np.random.default_rng(0).standard_normal((2, 1000, 64)).astype("float32")
    std = jnp.sqrt(process.alpha(s) ** 2 + process.sigma(s) ** 2)
    noise = base.Noise(lambda t, s, part=0: jnp.asarray(z), lambda i: jnp.asarray(z))
    moved = make(snr=0.1).step(
        noise, std * first, s + 0.01, s, laws.denoise_mixture(law, process), process, None
    )
    assert jnp.std(moved - std * first) > 0.1 * std  # it has moved
    assert_allclose(jnp.var(moved) / std**2, 1.0, rtol=0.015)
