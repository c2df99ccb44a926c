"""The bound of variational diffusion models equals an independent computation, term by term."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.likelihood import bounds
from diffusion_jax.objectives import learned_variance, vdm
from diffusion_jax.processes import gaussian, schedules

with np.load(Path(__file__).parents[1] / "fixtures" / "vdm.npz") as saved:
    F = dict(saved)
PROCESS = schedules.VDM(*map(float, F["gammas"]))
STEPS = int(F["steps"])


def denoise(x_t, t, cond=None):
    """The denoiser of the fixture, with the small variance."""
    gamma = -gaussian.logsnr(PROCESS, t)
    eps = jnp.tanh(x_t @ F["matrix"] + gamma[:, None] * F["offset"])
    return gaussian.from_eps(PROCESS, x_t, eps, t)._replace(nu=-jnp.ones_like(x_t))


def noised():
    """The examples of the fixture."""
    x0 = jnp.asarray(F["levels"] / 127.5 - 1, jnp.float32)
    return gaussian.corrupt(PROCESS, x0, jnp.asarray(F["eps"]), jnp.asarray(F["t"]))


def test_the_loss_is_the_sum_of_the_three_terms():
    """In continuous time: diffusion, prior and reconstruction, in bits per dimension."""
    objective = vdm.vdm(PROCESS)
    found = jax.jit(lambda drawn: objective.loss(denoise, drawn))(noised())
    assert_allclose(found, F["continuous"] + F["prior"] + F["reconstruction"], rtol=2e-4)
    assert np.ptp(F["continuous"]) > 1 and F["reconstruction"].min() > 1


def test_the_ends_are_the_divergence_and_the_decoder():
    drawn = noised()
    prior, reconstruction = vdm._at_ends(PROCESS, drawn.x0, drawn.eps, 256)
    assert_allclose(prior, F["prior"], rtol=1e-4)
    assert_allclose(reconstruction, F["reconstruction"], rtol=1e-4)
    # the prior of the process is that of the paper but for its variance, sigma_1^2 for 1
    assert_allclose(bounds._prior(PROCESS, drawn.x0, jnp.ones(())), F["prior_unit"], atol=5e-5)
    assert np.abs(F["prior"] - F["prior_unit"]).max() > 1e-6


def test_the_loss_in_discrete_time_is_that_of_the_small_variance():
    """STEPS divergences of Gaussians; the grid of `vlb` has one time more, the data end."""
    objective = learned_variance.vlb(PROCESS, STEPS + 1, importance=False)
    found = jax.jit(lambda drawn: objective.loss(denoise, drawn))(noised())
    assert_allclose(found * STEPS / (STEPS + 1), F["discrete"], rtol=1e-3)
    # it is above the loss in continuous time, to which it tends (Kingma et al. 2021, section 4.2)
    assert np.all(F["discrete"] > F["continuous"])


def test_a_wrong_noise_level_is_seen():
    """Gamma shifted by a tenth changes every loss by more than ten times the tolerance above."""
    shifted = schedules.VDM(*(float(g) + 0.1 for g in F["gammas"]))
    drawn = noised()
    moved = gaussian.corrupt(shifted, drawn.x0, drawn.eps, drawn.t)
    found = vdm.vdm(shifted).loss(denoise, moved)
    wanted = F["continuous"] + F["prior"] + F["reconstruction"]
    assert np.abs(found / wanted - 1).min() > 2e-3
