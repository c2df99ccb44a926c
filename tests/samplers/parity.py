"""How samplers are compared with the programs of others (fixtures/README.md), in float64.

Both have the same exact denoiser, grid and noise. The recorded noise goes in where ours is drawn,
so it is Sampler.step that is compared; the loop, `base.sample`, has tests of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.denoisers import parameterization, thresholding
from diffusion_jax.denoisers.parameterization import decode, target
from diffusion_jax.processes import discrete
from diffusion_jax.samplers import step_noise
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

    return thresholding.clip_x0(denoise, process) if clip else denoise


@functools.cache
def compiled(sampler, process, denoise):
    """One step of the sampler with the noise that it is given, (B, ...) or one per part."""

    @jax.jit
    def step(x, memory, z, t, s):
        fixed = step_noise.Noise(
            lambda t, s, part=0: z[part] if z.ndim > x.ndim else z, lambda i: z
        )
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
    assert np.array_equal(levels[:-1, 1], levels[1:, 0]), "the case does not step along this grid"
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
    """A solver on its stored grid of sigma / alpha. drop: last steps that differ there."""
    with jax.enable_x64(True):
        path, theirs, final = walk_ratios(file, case, sampler, unit)
    assert len(path) == len(theirs)
    for ours, step in zip(path[: len(path) - drop], theirs):
        assert_allclose(ours[0], step, rtol=rtol, atol=rtol * np.abs(step).max())
    if not drop:
        assert_allclose(path[-1], final, rtol=rtol, atol=rtol)


KEPT = {"lower_order_final": False}


def gaps(file, case, sampler, unit):
    """The largest difference after each step, of the first example: (S + 1,)."""
    path, theirs, _ = walk_ratios(file, case, sampler, unit)
    return np.array([np.abs(ours[0] - step).max() for ours, step in zip(path, theirs)])
