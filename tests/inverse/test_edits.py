"""Edits: interpolation, translation and SDEdit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.inverse import edits
from diffusion_jax.processes import schedules
from diffusion_jax.samplers import ancestral, base, few_step, grids, multistep
from diffusion_jax.targets import laws


def test_slerp_keeps_lengths_and_goes_along_the_arc():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((3, 2, 4)), "float32") for _ in range(2))

    def unit(v):
        return v / np.linalg.norm(np.asarray(v).reshape(3, -1), axis=1)[:, None, None]

    a, b = unit(a), unit(b)
    assert_allclose(edits.slerp(a, b, 0.0), a, atol=1e-6)
    assert_allclose(edits.slerp(a, b, 1.0), b, atol=1e-6)
    middle = edits.slerp(a, b, 0.5)
    assert_allclose(middle, unit(a + b), atol=1e-5)
    assert_allclose(edits.slerp(a, a, 0.3), a, atol=1e-6)  # no arc
    assert np.all(
        np.isfinite(jax.grad(lambda a, b: edits.slerp(a, b, 0.3).sum(), argnums=(0, 1))(a, a))
    )


def by_class(process):
    """Two Gaussians of the same covariance, one for each label."""
    both = [
        laws.denoise_gaussian(laws.gaussian(center, 0.25 * np.eye(2)), process)
        for center in np.array([[1.0, 0.0], [-1.0, 0.5]])
    ]

    def denoise(x, t, cond):
        first, second = (one(x, t) for one in both)
        return jax.tree.map(
            lambda p, q: jnp.where(cond["label"][:, None] == 0, p, q), first, second
        )

    return denoise


def test_translation_of_gaussians_is_a_shift_and_interpolation_ends_at_its_ends():
    process, x0 = schedules.VP(), jnp.array([[1.3, -0.2], [0.7, 0.4]])
    zero, one, ts = (
        {"label": jnp.zeros(2, int)},
        {"label": jnp.ones(2, int)},
        grids.uniform_logsnr(process, 40),
    )
    sampler = multistep.dpmpp_2m()
    moved = jax.jit(
        lambda x: edits.translate(sampler, by_class(process), process, x, ts, zero, one)
    )(x0)
    assert_allclose(moved, x0 + np.array([-2.0, 0.5]), atol=0.02)
    way = jax.jit(
        lambda a, b: edits.interpolate(
            sampler, by_class(process), process, a, b, jnp.array([0.0, 0.5, 1.0]), ts, (zero, one)
        )
    )
    frames = way(x0, moved)
    assert frames.shape == (3, 2, 2)
    assert_allclose(frames[0], x0, atol=0.02)
    assert_allclose(frames[2], moved, atol=0.02)


def test_a_stochastic_sampler_blends_between_its_own_images():
    process, keys = schedules.VP(), arrays.example_keys(jax.random.key(0), 3)
    conds = {"label": jnp.zeros(3, int)}, {"label": jnp.ones(3, int)}
    a, b = (base.start(process, jax.random.key(seed), (3, 2)) for seed in (1, 2))
    sampler, ts = few_step.multistep(), grids.few_step(process, 2)
    frames = edits.blend(
        sampler, by_class(process), process, keys, a, b, jnp.array([0.0, 0.4, 1.0]), ts, conds
    )
    for frame, x, cond in ((frames[0], a, conds[0]), (frames[2], b, conds[1])):
        assert_allclose(
            frame,
            base.sample(sampler, by_class(process), process, keys, x, ts, cond).x0,
            rtol=1e-5,
            atol=1e-6,
        )
    assert (np.abs(frames[1] - frames[0]) > 1e-6).all()  # the start has moved, and not the class
    with pytest.raises(UserError, match="only a deterministic sampler can encode"):
        edits.interpolate(sampler, by_class(process), process, a, b, jnp.zeros(1), ts, conds)


def test_sdedit_keeps_less_of_the_guide_the_more_noise_there_is():
    """From time t on the mean is that of x0 given x_t: alpha^2 C / (alpha^2 C + sigma^2) of the
    guide is left.
    """
    process, guide, full = (
        schedules.VP(),
        jnp.full((400, 2), 2.0),
        grids.uniform_logsnr(schedules.VP(), 41),
    )
    denoise = laws.denoise_gaussian(laws.gaussian(np.zeros(2), np.eye(2)), process)
    run = jax.jit(
        lambda keys, ts: edits.sdedit(ancestral.ddpm(), denoise, process, keys, guide, ts)
    )
    left = []
    for strength in (0.25, 0.55, 1.0):
        ts = edits.last_moves(full, strength)
        assert len(ts) == round(40 * strength) + 1
        mean = float(np.mean(run(jax.random.key(0), ts)))
        alpha, sigma = (float(f(ts[0])) for f in (process.alpha, process.sigma))
        assert_allclose(mean, 2 * alpha**2 / (alpha**2 + sigma**2), atol=0.15)
        left.append(mean)
    assert left[0] > 1.7 and left[2] < 0.15 and sorted(left, reverse=True) == left
