"""The hybrid objective, which learns the reverse variance: minimum, gradients, estimate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.arrays import example_keys
from diffusion_jax.objectives import denoising, learned_variance
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import grids
from tests.families import PROCESSES, AnyOf
from tests.likelihood.chains import CHAIN, bound_of, exact_denoiser, pixels


def test_hybrid_moves_the_mean_as_l_simple_and_rests_at_the_true_variance():
    """Let c be added to eps-hat and e to nu: d/dc equals that of L_simple bit for bit.

    E d/de is 0 at the true variance, and not elsewhere.
    """
    steps, count = 20, 4096
    ts = grids.uniform(CHAIN, steps)
    exact, objective = (
        exact_denoiser(CHAIN, ts),
        learned_variance.hybrid(CHAIN, steps, vlb_weight=1.0),
    )
    noised = jax.jit(objective.draw)(example_keys(jax.random.key(0), count), pixels(count, seed=7))

    def losses(c, e, loss):
        def denoise(x_t, t, cond):
            prediction = exact(x_t, t)
            moved = gaussian.from_eps(CHAIN, x_t, prediction.eps + c[:, None], t)
            return moved._replace(nu=prediction.nu + e[:, None])

        return loss(denoise, noised, None).sum()

    gradients = jax.jit(jax.grad(losses, argnums=(0, 1)), static_argnums=2)
    start = jnp.full(count, 0.3), jnp.zeros(count)
    simple = gradients(*start, denoising.ddpm(CHAIN, steps).loss)[0]
    assert np.array_equal(gradients(*start, objective.loss)[0], simple) and np.abs(simple).max() > 0
    for e, rests in ((0.0, True), (0.5, False)):
        g = np.asarray(gradients(jnp.zeros(count), jnp.full(count, e), objective.loss)[1])
        assert (abs(g.mean()) < 4 * g.std() / np.sqrt(count)) == rests, (
            e,
            g.mean(),
            g.std() / np.sqrt(count),
        )


def test_the_gradients_of_the_hybrid_objective_are_finite():
    """Images are at both ends of [-1, 1], and denoisers are far off, under every process.

    Each example counts one term, a move or the reconstruction, and the other must not reach its
    gradient (0 times infinity).
    """
    x0 = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1 / 255, 1.0], (512, 2)), "float32")

    @jax.jit
    def gradients(index, scale):
        process = AnyOf(index)
        objective = learned_variance.hybrid(process, steps=20)
        noised = objective.draw(jax.random.key(0), x0)

        def losses(scale, nu):
            def denoise(x_t, t, cond):
                return gaussian.from_eps(process, x_t, scale * x_t, t)._replace(
                    nu=nu * jnp.ones_like(x_t)
                )

            return objective.loss(denoise, noised, None).sum()

        return jax.grad(losses, argnums=(0, 1))(scale, 0.5)

    for index, name in enumerate(PROCESSES):
        for scale in (0.0, 0.3, 30.0):
            assert np.all(np.isfinite(gradients(index, scale))), (name, scale)


def test_without_levels_the_first_term_is_a_density():
    """That of a bin is its density times its width, where it is narrow, and other terms are the
    same.
    """
    width, ts = 2 / 65_535, grids.uniform(CHAIN, 8)
    x0 = 0.5 * pixels(64)  # within the outer bins
    fine, density = (
        learned_variance.vlb(CHAIN, 8, levels=levels, importance=False) for levels in (65_536, 0)
    )
    noised = fine.draw(jax.random.key(0), x0)
    denoise = exact_denoiser(CHAIN, ts)
    extra = density.loss(denoise, noised, None) - fine.loss(denoise, noised, None)
    first = np.asarray(noised.t) == np.float32(CHAIN.t_min)
    assert 0 < first.sum() < 64
    np.testing.assert_allclose(extra[first], 8 * np.log2(width), rtol=1e-3)
    np.testing.assert_allclose(extra[~first], 0, atol=1e-6)


def test_hybrid_estimates_the_whole_bound():
    """vlb_weight times (diffusion + reconstruction) of elbo.vlb, in bits per dimension, on top of
    L_simple.
    """
    ts, x0, weight = grids.uniform(CHAIN, 8), pixels(8192), 0.5  # a bound that is compiled already
    denoise, objective = (
        exact_denoiser(CHAIN, ts),
        learned_variance.hybrid(CHAIN, 8, vlb_weight=weight),
    )

    @jax.jit
    def extra(keys):
        noised = objective.draw(keys, x0)
        return (
            objective.loss(denoise, noised, None)
            - denoising.ddpm(CHAIN, 8).loss(denoise, noised, None)
        ) / weight

    sampled, bound = (
        np.asarray(extra(example_keys(jax.random.key(2), 8192))),
        bound_of(8, "learned"),
    )
    whole = float(np.mean(bound["diffusion"] + bound["reconstruction"]))
    assert abs(sampled.mean() - whole) < 4 * sampled.std() / np.sqrt(8192)
