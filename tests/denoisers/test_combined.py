"""Classifier-free guidance together with guidance away from a worse network, on Gaussians."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import combined, guidance, guides
from diffusion_jax.processes import schedules
from diffusion_jax.targets import laws
from tests.denoisers.mixture_by_class import NULL, every_process, null, points

COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.3]])
MEANS = np.array([[0.8, -0.3], [-0.5, 0.6]])  # of the classes
ALL, WORSE = np.array([0.1, 0.2]), np.array([-0.4, 0.9])
W, S = 2.5, 1.7


def exact(process, mean):
    return laws.denoise_gaussian(laws.gaussian(mean, COVARIANCE), process)


def by_class(process, calls=None):
    """The exact denoisers of Gaussians of one covariance: of a class, or of all."""
    every = [exact(process, mean) for mean in (*MEANS, ALL)]

    def denoise(x_t, t, cond):
        if calls is not None:
            calls.append(len(x_t))
        found = [one(x_t, t) for one in every]
        label = jnp.where(cond["label"] == NULL, 2, cond["label"])[:, None]
        return jax.tree.map(lambda *parts: jnp.choose(label, parts, mode="clip"), *found)

    return denoise


def target(process, x, t, label, w, s):
    """p_c^(w + s) p_all^(1 - w) p_worse^-s of Gaussians of one covariance is such a Gaussian."""
    mean = (w + s) * MEANS[label] + (1 - w) * ALL - s * WORSE
    return exact(process, mean)(x, t)


@every_process
def test_three_gaussians_make_a_fourth(process):
    (x, cond), t = points(), 0.4
    worse = exact(process, WORSE)
    pair = guidance.conditional_pair(by_class(process), null)
    guided = combined.with_second(pair, W, combined.difference(worse), S)(x, t, cond)
    for label in (0, 1):
        here = cond["label"] == label
        mine = jax.tree.map(lambda p, here=here: p[here], guided)
        expected = target(process, x[here], t, label, W, S)
        chex.assert_trees_all_close(mine, expected, rtol=1e-3, atol=2e-4)


def context(process, calls=None):
    def perturbed(blocks, how):
        assert blocks == ("middle_attention",)
        own = exact(process, WORSE)

        def denoise(x_t, t, cond=None):
            if calls is not None:
                calls.append(how)
            return own(x_t, t)

        return denoise

    return guides.GuidanceContext(process, null, None, None, perturbed)


@pytest.mark.parametrize("second, how", [("pag", "identity_attention"), ("slg", "skipped")])
def test_it_is_three_evaluations_and_the_sum_of_the_two_guides(second, how):
    process, (x, cond), calls = schedules.VP(), points(), []
    denoise, second = by_class(process, calls), getattr(guides, second)()
    both = guides.cfg_with(second, scale=S)
    guided = both.apply(denoise, jnp.float32(W), context(process, calls))(x, 0.4, cond)
    assert calls == [12, how]
    alone = [
        guide.apply(denoise, scale, context(process))(x, 0.4, cond)
        for guide, scale in ((guides.cfg(), W), (second, 1 + S))
    ]
    plain = denoise(x, 0.4, cond)
    expected = jax.tree.map(lambda a, b, p: a + b - p, *alone, plain)
    chex.assert_trees_all_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert both.neutral is None and both.condition == "any" and both.null


def test_the_second_guidance_may_be_limited_to_noise_levels():
    """At sigma / alpha in (0.5, 2], by one time for all and by times of their own."""
    process, (x, cond), calls = schedules.EDM(), points(), []
    second = guides.interval(guides.slg(), low=0.5, high=2.0)
    guide = guides.cfg_with(second, scale=S)
    denoise = by_class(process)
    guided = jax.jit(guide.apply(denoise, W, context(process, calls)))
    cfg, full = guides.cfg(), guides.cfg_with(guides.slg(), scale=S)
    levels = [0.3, 1.0, 3.0]
    times = [level / process.sigma_max for level in levels]
    for t, level in zip(times, levels):
        chosen = full if 0.5 < level <= 2 else cfg
        expected = chosen.apply(denoise, W, context(process))(x, t, cond)
        chex.assert_trees_all_close(guided(x, t, cond), expected, rtol=1e-4, atol=1e-4)
    each = jnp.float32(times * 2)
    found = guide.apply(denoise, W, context(process))(x, each, cond)
    inside = full.apply(denoise, W, context(process))(x, each, cond)
    outside = cfg.apply(denoise, W, context(process))(x, each, cond)
    here = np.array([0, 1, 0] * 2, bool)[:, None]
    expected = jax.tree.map(lambda a, b: jnp.where(here, a, b), inside, outside)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("second", [guides.cfg(), guides.classifier("c"), guides.cfg_with()])
def test_a_second_guide_leads_away_from_a_worse_model(second):
    with pytest.raises(UserError, match="use pag.., slg.. or autoguidance"):
        guides.cfg_with(second)
    with pytest.raises(UserError, match="cfg_with: scale=-1"):
        guides.cfg_with(guides.pag(), scale=-1.0)
