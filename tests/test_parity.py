"""DDPM, DDIM and EDM against the programs of others: the same exact denoiser, grid and noise (fixtures/README.md), in
float64.

The recorded noise goes in where ours is drawn, so it is Sampler.step that is compared; `base.sample`, the loop, has
tests of its own.
"""

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
from diffusion_jax.samplers import ancestral, base, grids, ode, sde

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

    def step(x, z, t, s):
        fixed = base.Noise(lambda t, s, part=0: z, lambda i: z)
        return sampler.step(fixed, x, sampler.init(x, ts), t, s, denoise, process)[0]

    step, path = jax.jit(step), [x]
    for i in range(len(ts) - 1):
        path.append(step(path[-1], noise[i], ts[i], ts[i + 1]))
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
