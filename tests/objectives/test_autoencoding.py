"""Objectives of autoencoders: the bounds of a linear Gaussian model equal closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import arrays
from diffusion_jax.objectives import autoencoding, variational
from diffusion_jax.objectives.variational import AutoencoderNetworks
from tests.objectives.images import IMAGES, Q_MEAN, Q_VARIANCE, W, X, sigma_points

B, S = np.array([0.1, -0.2, 0.0, 0.3]), 0.5


def linear(q_mean=Q_MEAN, q_variance=Q_VARIANCE):
    """Encoder mean q_mean (x - B), variance q_variance; decoder W z + B."""

    def encode(x, cond):
        mean = (x.reshape(-1, 4) - B) @ q_mean.T
        return mean, jnp.broadcast_to(jnp.log(q_variance), mean.shape)

    return AutoencoderNetworks(
        encode, lambda z, cond, x: ((z @ W.T + B).reshape(-1, 2, 2, 1), jnp.log(S))
    )


def log_p():
    """log N(x; B, W W^T + S^2)."""
    covariance = W @ W.T + S**2 * np.eye(4)
    difference = X - B
    square = np.einsum("bi,ij,bj->b", difference, np.linalg.inv(covariance), difference)
    return -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])


def closed_form():
    """(rate, distortion) of q above, by hand: KL of Gaussians, and the mean of a quadratic."""
    m = (X - B) @ Q_MEAN.T
    rate = 0.5 * (m**2 + Q_VARIANCE - 1 - np.log(Q_VARIANCE)).sum(1)
    residual = ((X - B - m @ W.T) ** 2).sum(1) + (W**2 @ Q_VARIANCE).sum()
    return rate, 0.5 * residual / S**2 + 2 * np.log(2 * np.pi * S**2)


def averaged(objective, step=0):
    """The loss averaged over the sigma points, and the metrics of which rate and distortion are."""
    found = [
        objective.loss(linear(), IMAGES, eps[None], None, jnp.int32(step)) for eps in sigma_points()
    ]
    return jax.tree.map(lambda *parts: np.mean(np.stack(parts), 0), *found)


def test_the_bound_of_a_linear_gaussian_model_is_its_closed_form():
    rate, distortion = closed_form()
    losses, metrics = averaged(autoencoding.elbo(), 0)
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-5)
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(losses, rate + distortion, rtol=1e-5)
    assert (-losses < log_p()).all()


def test_with_the_exact_posterior_the_bound_is_the_likelihood():
    """W with orthogonal columns has a diagonal posterior; then log p(x, z) - log q(z | x) is log
    p(x) at every z.
    """
    orthogonal = np.linalg.qr(W)[0] * [1.1, 0.4]
    precision = 1 + (orthogonal**2).sum(0) / S**2
    exact = linear(orthogonal.T / S**2 / precision[:, None], 1 / precision)
    exact = exact._replace(
        decode=lambda z, cond, x: ((z @ orthogonal.T + B).reshape(-1, 2, 2, 1), jnp.log(S))
    )
    eps = arrays.noise(jax.random.key(0), jnp.zeros((5, 3, 2)))
    log_weights, _, _ = variational.importance(exact, autoencoding.gaussian(), IMAGES, eps)
    covariance = orthogonal @ orthogonal.T + S**2 * np.eye(4)
    square = np.einsum("bi,ij,bj->b", X - B, np.linalg.inv(covariance), X - B)
    expected = -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])
    np.testing.assert_allclose(log_weights, np.broadcast_to(expected, (5, 3)), rtol=1e-5)


def test_the_importance_weighted_bound_grows_to_the_likelihood():
    """40,000 weights in groups of k: of 1 the bound is the ELBO, of more it is more, of 4000 log
    p(x) to one in a hundred.
    """
    copies = 4000
    x, draws = (
        jnp.tile(IMAGES, (copies, 1, 1, 1)),
        arrays.noise(jax.random.key(1), jnp.zeros((10, 3 * copies, 2))),
    )
    net, law = linear(), autoencoding.gaussian()
    log_weights = jax.jit(lambda x, eps: variational.importance(net, law, x, eps, loop=True)[0])(
        x, draws
    )
    weights = np.asarray(log_weights).reshape(10 * copies, 3)
    bound = {
        k: np.log(np.exp(weights.reshape(-1, k, 3)).mean(1)).mean(0) for k in (1, 10, 100, 4000)
    }
    np.testing.assert_allclose(bound[1], -np.sum(closed_form(), 0), rtol=0.01)
    assert (
        (bound[1] < bound[10]).all()
        and (bound[10] < bound[100]).all()
        and (bound[100] < log_p()).all()
    )
    np.testing.assert_allclose(bound[4000], log_p(), atol=0.01)


def test_the_loss_of_iwae_is_its_bound():
    eps = sigma_points()
    losses, metrics = autoencoding.iwae(samples=4).loss(linear(), IMAGES, eps, None, 0)
    log_weights, _, _ = variational.importance(linear(), autoencoding.gaussian(), IMAGES, eps)
    np.testing.assert_allclose(losses, -np.log(np.exp(np.float64(log_weights)).mean(0)), rtol=1e-5)
    np.testing.assert_allclose([metrics["rate"], metrics["distortion"]], closed_form(), rtol=1e-5)
    key, draw = jax.random.key(0), autoencoding.iwae(samples=4).draw
    each = draw(arrays.example_keys(key, 3), jnp.zeros((3, 2)))
    assert each.shape == (4, 3, 2)
    np.testing.assert_array_equal(draw(key, jnp.zeros((3, 2))), each)  # one key for the batch


def test_beta_annealing_and_free_bits():
    """Half-way up the ramp half of beta is paid; a dimension whose mean rate is below the free bits
    costs just these.
    """
    rate, distortion = closed_form()
    for step, weight in ((0, 0.0), (50, 1.0), (100, 2.0), (300, 2.0)):
        losses, _ = averaged(autoencoding.elbo(beta=2.0, anneal=100), step)
        np.testing.assert_allclose(losses, distortion + weight * rate, rtol=1e-5)
    m = (X - B) @ Q_MEAN.T
    each = 0.5 * (m**2 + Q_VARIANCE - 1 - np.log(Q_VARIANCE))  # (3, 2)
    low, high = sorted(each.mean(0))
    free = 0.5 * (low + high)
    losses, metrics = averaged(autoencoding.elbo(free_bits=float(free)))
    paying = int(np.argmax(each.mean(0)))
    np.testing.assert_allclose(losses, distortion + each[:, paying] + free, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-5)


def test_active_units_are_those_that_move():
    means = np.random.default_rng(0).normal(size=(2000, 3)) * [
        1.0,
        0.05,
        0.2,
    ]  # variances 1, 0.0025, 0.04
    assert variational.active_units(jnp.asarray(means)) == 2


@pytest.mark.parametrize(
    "mean, log_scale", [(0.1, -1.0), (-0.98, -3.0), (1.3, -2.0), (0.0, -6.0), (0.3, 2.0)]
)
def test_the_discretized_logistic_sums_to_one_over_its_levels(mean, log_scale):
    levels = jnp.linspace(-1, 1, 256).reshape(256, 1, 1, 1)
    log_prob = autoencoding.logistic().log_prob(
        jnp.full(levels.shape, mean), jnp.float32(log_scale), levels
    )
    assert float(jax.scipy.special.logsumexp(log_prob)) == pytest.approx(0, abs=2e-4)

    def cdf(x):
        return 1 / (1 + np.exp(-(x - mean) / np.exp(log_scale)))

    i = 255 if mean > 1 else 120
    x = np.linspace(-1, 1, 256)[i]
    inside = (1 if i == 255 else cdf(x + 1 / 255)) - cdf(x - 1 / 255)
    if inside > 1e-6:  # float64 by hand, where the difference has digits
        assert float(log_prob[i]) == pytest.approx(np.log(inside), rel=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "logistic"])
def test_log_probabilities_have_finite_gradients_wherever_the_decoder_is(name):
    x, mean, log_scale = jnp.meshgrid(
        jnp.array([-1.0, 1 / 255, 1.0]),
        jnp.array([-1e3, -1.0, 0.0, 1.0, 1e3]),
        jnp.array([-12.0, -7.0, 0.0, 30.0]),
    )
    law = getattr(autoencoding, name)()
    value, slopes = jax.value_and_grad(lambda m, s: law.log_prob(m, s, x).sum(), argnums=(0, 1))(
        mean, log_scale
    )
    assert np.isfinite(value) and np.all(np.isfinite(slopes))


def test_bernoulli_is_two_outcomes_and_gaussian_a_density():
    two = jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    for law in (autoencoding.bernoulli(), autoencoding.bernoulli(binary=True)):
        assert float(
            jnp.exp(law.log_prob(jnp.full((2, 1, 1, 1), 0.7), 0.0, two)).sum()
        ) == pytest.approx(1, abs=1e-6)
    grid = jnp.linspace(-8, 8, 4001).reshape(-1, 1, 1, 1)
    for law, log_scale in ((autoencoding.gaussian(0.5), 3.0), (autoencoding.gaussian(), -0.5)):
        density = jnp.exp(law.log_prob(jnp.full(grid.shape, 0.2), jnp.float32(log_scale), grid))
        assert float(density.sum() * 16 / 4000) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "name, mean, log_scale",
    [("gaussian", 0.3, -1.0), ("bernoulli", 0.8, 0.0), ("logistic", 0.2, -2.0)],
)
def test_draws_follow_the_law(name, mean, log_scale):
    """The quantile function takes 40,000 unit Gaussians to the law: its mean is the picture's,
    within four standard errors.
    """
    law = getattr(autoencoding, name)()
    noise = arrays.noise(jax.random.key(0), jnp.zeros((40_000, 1, 1, 1)))
    drawn = np.asarray(law.draw(noise, jnp.full(noise.shape, mean), jnp.float32(log_scale)))
    assert abs(drawn.mean() - float(law.image(jnp.float32(mean)))) < 4 * drawn.std() / 200
    if name == "logistic":  # on the levels of uint8
        levels = (drawn + 1) * 127.5
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
