"""Samplers against SiT, and single updates against score_sde."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.processes import schedules
from diffusion_jax.samplers import ancestral, corrector, sde, step_noise
from diffusion_jax.targets import laws
from tests.samplers.parity import (
    compare,
    fixture,
    mixture_denoiser,
    walk,
)

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
        )  # their sub-VP has no other discretization
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
        noise = step_noise.Noise(lambda t, s, part=0: pool[0], lambda i: pool[i])
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
    noise = step_noise.Noise(lambda t, s, part=0: jnp.asarray(z), lambda i: jnp.asarray(z))
    moved = make(snr=0.1).step(
        noise, std * first, s + 0.01, s, laws.denoise_mixture(law, process), process, None
    )
    assert jnp.std(moved - std * first) > 0.1 * std  # it has moved
    assert_allclose(jnp.var(moved) / std**2, 1.0, rtol=0.015)
