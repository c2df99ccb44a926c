"""DDPM, DDIM and EDM against the programs of others: the same exact denoiser, grid and noise (fixtures/README.md), in
float64.

The recorded noise goes in where ours is drawn, so it is Sampler.step that is compared; `base.sample`, the loop, has
tests of its own.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax import guidance, parameterization, targets
from diffusion_jax.parameterization import decode, target
from diffusion_jax.processes import discrete, schedules
from diffusion_jax.samplers import ancestral, base, grids, multistep, ode, sde

FOLDER = Path(__file__).parent / "fixtures"
PAIRS = {"epsilon": parameterization.eps(), "epsilon+nu": parameterization.eps(), "sample": parameterization.x0(),
         "v_prediction": parameterization.v()}
TABLES = {"squaredcos_cap_v2": "cosine"}  # diffusers' name for it: ours
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}


@functools.cache
def fixture(name):
    stored = dict(np.load(FOLDER / f"{name}.npz"))
    return stored, json.loads(str(stored["meta"]))["cases"]


def mixture_denoiser(stored, process, kind="sample", clip=False):
    """The exact denoiser behind a network of this prediction type, clipped if asked."""
    law = targets.Mixture(*(jnp.asarray(stored[k], "float64") for k in ("weights", "means", "variances")))
    exact, pair = targets.denoise_mixture(law, process), PAIRS[kind]

    def denoise(x, t, cond=None):
        t = jnp.broadcast_to(t, x.shape[:1])
        prediction = decode(pair, process, target(pair, process, exact(x, t), t), x, t)
        return prediction._replace(nu=jnp.tanh(x @ stored["nu_matrix"].T)) if kind == "epsilon+nu" else prediction

    return guidance.clip_x0(denoise, process) if clip else denoise


def walk(sampler, process, denoise, x, ts, noise):
    """x before the first step and after each step along ts; noise[i] is what step i draws. All float64."""

    @jax.jit
    def step(x, memory, z, t, s):
        fixed = base.Noise(lambda t, s, part=0: z, lambda i: z)
        return sampler.step(fixed, x, memory, t, s, denoise, process)

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
    assert_allclose(path[-1], stored[f"{case}/x"], rtol=rtol, atol=rtol * np.abs(stored[f"{case}/x"]).max())


def run_table(file, case, sampler, rtol=1e-9):
    """A scheduler of diffusers on its table of alpha-bar; its last step, to alpha-bar = 1, is our x0-hat."""
    stored, cases = fixture(file)
    about, levels = cases[case], stored[cases[case]["alpha_bar"]]
    assert np.array_equal(levels[:-1, 1], levels[1:, 0]), "this grid is not walked along, but beside"
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


@pytest.mark.parametrize("variant, eta", [
    ("eta0/sample", 0.0), ("eta0/v_prediction", 0.0), ("eta0.5/v_prediction", 0.5), ("eta0/offset1", 0.0),
    ("eta0/offset1_alpha_one_false", 0.0), ("eta0/clip_consistent", 0.0), ("eta1/clip_consistent", 1.0),
])
def test_ddim_variants_equal_diffusers(variant, eta):
    run_table("diffusers_ddim", f"leading/10/{variant}", ancestral.ddim(eta))


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("grid", ["leading/20", "linspace/20", "all50"])
def test_ddpm_equals_diffusers(grid, variance):
    run_table("diffusers_ddpm", f"{grid}/{variance}", ancestral.ddpm(VARIANCES[variance]))


@pytest.mark.parametrize("variant", ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "v_prediction", "clip"])
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
    """Solvers in t on EDM's path, and on the VP path of Song et al.; there their very last step is in t too, not
    x0-hat, and is left out.
    """
    case = f"ablation/{baseline}/{solver}"
    stored, cases = fixture("edm")
    about = cases[case]
    with jax.enable_x64(True):
        sigma = stored[about["net_sigma"]][about["first_call_of_step"]]
        if baseline == "vp":
            process, ts = schedules.VP(), jnp.linspace(1.0, 1e-3, len(sigma))
            assert_allclose(process.sigma(ts) / process.alpha(ts), sigma, rtol=1e-5)  # theirs is cast on the way
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


# ---- multistep: grids given as sigma / alpha ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A path on which sigma / alpha = exp(-8 + 16 t): of unit variance, as diffusers has it, or with alpha = 1."""

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


def run_ratios(file, case, sampler, unit, drop=0, rtol=1e-9):
    """A solver on its stored grid of sigma / alpha; a last one of 0 is our x0-hat. drop: last steps that are made otherwise there."""
    stored, cases = fixture(file)
    about = cases[case]
    with jax.enable_x64(True):
        process, ratios = Ratio(unit), grid_of(stored, about)
        ts = (jnp.log(ratios[ratios > 0]) + 8) / 16
        denoise = mixture_denoiser(stored, process)
        x = about["x_T_scale"] * jnp.asarray(stored["z"], "float64")
        draws = np.cumsum([0, *about["draws"]])[:-1]  # the first of each step's
        path = walk(sampler, process, denoise, x, ts, jnp.asarray(stored["noise"], "float64")[np.minimum(draws, len(stored["noise"]) - 1)])
        if ratios[-1] == 0:
            path.append(denoise(path[-1], ts[-1]).x0)
        theirs = stored[f"{case}/path"]
        assert len(path) == len(theirs)
        for ours, step in zip(path[: len(path) - drop], theirs):
            assert_allclose(ours[0], step, rtol=rtol, atol=rtol * np.abs(step).max())
        if not drop:
            assert_allclose(path[-1], stored[f"{case}/x"], rtol=rtol, atol=rtol)


MULTISTEP = {
    "dpm/dpmsolver++/2/10": multistep.dpmpp_2m(), "dpm/dpmsolver++/2heun/20": multistep.dpmpp_2m("exact"),
    "dpm/dpmsolver++/2/karras/10": multistep.dpmpp_2m(), "dpm/dpmsolver++/3/20": multistep.dpmpp_3m(curvature=0.5),
    "dpm/dpmsolver/2/20": multistep.dpm_2m(), "dpm/dpmsolver/2heun/20": multistep.dpm_2m("exact"),
    "dpm/dpmsolver/3/20": multistep.dpm_3m(curvature=0.5), "deis/1/20": multistep.deis(1, "logsnr"), "deis/2/20": multistep.deis(2, "logsnr"),
    "deis/3/20": multistep.deis(3, "logsnr"),
    **{f"unipc/{b}/{p}/{n}": multistep.unipc(p, b) for b in ("bh1", "bh2") for p in (1, 2, 3) for n in (10, 20)},
}  # fmt: skip
LOWERED = {"unipc/bh1/2": 1, "unipc/bh2/2": 1, "unipc/bh1/3": 2, "unipc/bh2/3": 2}  # last steps of lower order there


@pytest.mark.parametrize("case", MULTISTEP)
def test_multistep_solvers_equal_diffusers(case):
    run_ratios("diffusers_multistep", case, MULTISTEP[case], True, LOWERED.get(case.rpartition("/")[0], 0))


def test_dpmpp_2m_equals_k_diffusion():
    run_ratios("k_diffusion", "dpmpp_2m/20", multistep.dpmpp_2m(), False)


@pytest.mark.parametrize("case, order", [("lms/10", 4), ("lms/order2/20", 2)])
def test_lms_equals_k_diffusion(case, order):
    """But for the last step: theirs extrapolates to sigma = 0. Their quadrature is adaptive, good to 1e-8."""
    run_ratios("k_diffusion", case, multistep.lms(order), False, drop=1, rtol=1e-7)


def test_ipndm_equals_diffusers():
    run_ratios("diffusers_ode", "ipndm/betas/10", multistep.ipndm(), True, drop=1)
