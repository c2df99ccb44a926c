"""Autoencoders: bounds on a model whose likelihood is known, laws of images, each player's own
gradient, the networks.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import arrays
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import classifier
from diffusion_jax.models.autoencoder import VAE, AutoencoderKL
from diffusion_jax.models.discriminator import PatchGAN
from diffusion_jax.objectives import adversarial, autoencoding, variational
from diffusion_jax.objectives.variational import AutoencoderNetworks
from diffusion_jax.pretrained import lpips, weights
from tests.fixtures import make_lpips_fixtures

# ---- a linear Gaussian model: x = W z + b + s n, z in R^2, "images" of 2 x 2 x 1
W = np.array([[0.8, 0.3], [-0.4, 0.5], [0.1, -0.6], [0.3, 0.2]])
B, S = np.array([0.1, -0.2, 0.0, 0.3]), 0.5

Q_MEAN, Q_VARIANCE = (
    np.array([[0.4, -0.3, 0.2, 0.1], [0.1, 0.5, -0.2, 0.3]]),
    np.array([0.5, 1.4]),
)  # a poor posterior

X = np.array([[0.5, -0.3, 0.2, 0.9], [-0.7, 0.1, 0.4, 0.0], [1.0, 0.6, -0.8, 0.2]])
IMAGES = jnp.asarray(X.reshape(3, 2, 2, 1), jnp.float32)


def linear(q_mean=Q_MEAN, q_variance=Q_VARIANCE):
    """Encoder mean q_mean (x - B), variance q_variance; decoder W z + B."""

    def encode(x, cond):
        mean = (x.reshape(-1, 4) - B) @ q_mean.T
        return mean, jnp.broadcast_to(jnp.log(q_variance), mean.shape)

    return AutoencoderNetworks(
        encode, lambda z, cond, x: ((z @ W.T + B).reshape(-1, 2, 2, 1), jnp.log(S))
    )


def sigma_points(batch=3):
    """Four points of R^2 with zero mean and unit covariance: averages of quadratics over them are
    exact. (4, B, 2)
    """
    points = np.sqrt(2) * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    return jnp.asarray(np.repeat(points[:, None], batch, 1), jnp.float32)


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


# ---- laws of images
@pytest.mark.parametrize(
    "mean, log_scale", [(0.1, -1.0), (-0.98, -3.0), (1.3, -2.0), (0.0, -6.0), (0.3, 2.0)]
)
def test_the_discretised_logistic_sums_to_one_over_its_levels(mean, log_scale):
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


# ---- two networks, one optimizer
def networks(params, features=lambda x: (x,)):
    """A linear decoder with a last layer, and a quadratic discriminator: small enough to
    differentiate by hand.
    """

    def encode(x, cond):
        mean = x.reshape(-1, 4) @ params["autoencoder"]["in"]
        return mean, jnp.zeros_like(mean)

    def decode_with(kernel, z):
        return (jnp.tanh(z) @ kernel).reshape(-1, 2, 2, 1)

    def discriminate(x, frozen):
        d = params["discriminator"]
        d = jax.lax.stop_gradient(d) if frozen else d
        return (x**2 * d).reshape(-1, 4) - 0.1

    kernel = params["autoencoder"]["out"]
    return AutoencoderNetworks(
        encode,
        lambda z, cond, x: (decode_with(kernel, z), 0.0),
        discriminate,
        features,
        (kernel, decode_with),
    )


PLAYERS = {
    "autoencoder": {"in": jnp.asarray(Q_MEAN.T), "out": jnp.asarray(W.T)},
    "discriminator": jnp.asarray([[0.5], [1.5]]).reshape(1, 2, 1),
}


def test_each_players_gradient_is_that_of_its_own_loss():
    objective = autoencoding.reconstruction(
        pixels="l2", kl_weight=0.1, perceptual=0.5, adversarial=0.7
    )
    eps, kind = sigma_points()[:1], jnp.float32

    def total(params):
        return objective.loss(networks(params), IMAGES, eps, None, jnp.int32(0))[0].mean()

    found = jax.grad(total)(PLAYERS)
    _, metrics = objective.loss(networks(PLAYERS), IMAGES, eps, None, jnp.int32(0))
    weight = kind(metrics["adaptive_weight"][0])

    def autoencoders(own):
        """By hand, with the discriminator and the weight as numbers."""
        net = networks(PLAYERS | {"autoencoder": own})
        mean, _ = net.encode(IMAGES, None)
        image = net.decode(mean + eps[0], None, IMAGES)[0]
        error = jnp.mean((image - IMAGES) ** 2)
        distance = jnp.sum((image - IMAGES) ** 2, -1).mean()  # features are the pixels
        rate = 0.5 * jnp.sum(mean**2, 1).mean()
        fooled = -((image**2 * PLAYERS["discriminator"]) - 0.1).mean()
        return error + 0.5 * distance + 0.1 * rate / 4 + 0.7 * weight * fooled

    def discriminators(own):
        net = networks(PLAYERS | {"discriminator": own})
        image = net.decode(net.encode(IMAGES, None)[0] + eps[0], None, IMAGES)[0]

        def score(x):
            return (x**2 * own).reshape(-1, 4) - 0.1

        return 0.5 * jnp.mean(jax.nn.relu(1 - score(IMAGES)) + jax.nn.relu(1 + score(image)))

    expected = {
        "autoencoder": jax.grad(autoencoders)(PLAYERS["autoencoder"]),
        "discriminator": jax.grad(discriminators)(PLAYERS["discriminator"]),
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), found, expected
    )
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


def test_the_adaptive_weight_is_the_ratio_of_gradients_in_the_last_layer():
    objective = autoencoding.reconstruction(pixels="l2", perceptual=0.0, adversarial=0.7, start=5)
    eps = sigma_points()[:1]
    net = networks(PLAYERS)
    z = net.encode(IMAGES, None)[0] + eps[0]

    def image(kernel):
        return net.last[1](kernel, z)

    by_error = jax.grad(lambda k: jnp.mean((image(k) - IMAGES) ** 2))(net.last[0])
    by_judge = jax.grad(lambda k: -jnp.mean(image(k) ** 2 * PLAYERS["discriminator"]))(net.last[0])
    losses, metrics = objective.loss(net, IMAGES, eps, None, jnp.int32(5))
    expected = jnp.linalg.norm(by_error) / (jnp.linalg.norm(by_judge) + 1e-4)
    np.testing.assert_allclose(metrics["adaptive_weight"], expected, rtol=1e-5)
    before, _ = objective.loss(net, IMAGES, eps, None, jnp.int32(4))  # the game has not begun
    np.testing.assert_allclose(
        losses - before, 0.7 * expected * metrics["generator"] + metrics["discriminator"], rtol=1e-4
    )


def test_a_wrong_pixel_loss_is_named():
    with pytest.raises(UserError, match="unknown pixels 'l3'.*l1, l2|l1"):
        autoencoding.reconstruction(pixels="l3")


# ---- perceptual distances
FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_lpips_equals_the_authors_torch_code():
    """With made-up parameters; and with the real ones, where they are in the user's cache."""
    with np.load(FIXTURES / "lpips.npz") as fixture:
        shapes, expected = (
            json.loads(str(fixture["shapes"])),
            {key: float(fixture[key]) for key in ("made_up", "real")},
        )
    x, y = jnp.asarray(make_lpips_fixtures.pair()[:, None], jnp.float32)
    made = lpips.convert(
        {name: make_lpips_fixtures.parameter(name, tuple(shape)) for name, shape in shapes.items()}
    )
    assert float(lpips.distance(x, y, made)[0]) == pytest.approx(expected["made_up"], rel=1e-4)
    if weights._path("lpips", None).exists():
        assert float(lpips.distance(x, y, weights.load("lpips"))[0]) == pytest.approx(
            expected["real"], rel=1e-4
        )


def test_perceptual_features_have_a_gradient_and_no_distance_to_themselves():
    params = classifier.init((8, 8, 1), 2)
    x = (
        jnp.zeros((2, 8, 8, 1)).at[1, 2:5].set(0.5)
    )  # blank pixels, too: there a norm has no derivative

    def distance(y):
        return adversarial.feature_distance(classifier.maps(x, params), classifier.maps(y, params))

    assert float(distance(x).max()) == 0 and float(distance(x[::-1]).min()) > 0
    assert np.isfinite(jax.grad(lambda y: distance(y).sum())(x[::-1])).all()


# ---- networks
TINY = {
    "kl": AutoencoderKL(
        shape=(8, 8, 1), latent_channels=2, width=4, multipliers=(1, 2), blocks=1, norm=(2, 1e-6)
    ),
    "conv": VAE(
        shape=(8, 8, 1), latent=3, width=4, multipliers=(1, 2), num_classes=5, log_scale="pixel"
    ),
    "mlp": VAE(shape=(8, 8, 1), latent=3, hidden=(8,)),
    "powerful": VAE(shape=(8, 8, 1), latent=3, hidden=(8,), pixel_layers=2, pixel_width=4),
}


@functools.cache
def tiny(name):
    return TINY[name], random_params(TINY[name])


def random_params(model, shape=(8, 8, 1)):
    """All of them at random: zeros at the start would hide connections."""
    rng, shapes = (
        np.random.default_rng(0),
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape))),
    )
    return jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)


@pytest.mark.parametrize("name", TINY)
def test_encode_and_decode_have_the_shapes_they_promise(name):
    model, params = tiny(name)
    x, cond = jnp.ones((2, 8, 8, 1)), {"label": jnp.array([0, 5])}
    mean, log_variance = jax.eval_shape(lambda p: model.apply(p, x, cond, method="encode"), params)
    assert mean.shape == log_variance.shape == (2, *model.latent_shape)
    image, log_scale = jax.eval_shape(
        lambda p: model.apply(p, jnp.ones(mean.shape), cond, x, method="decode"), params
    )
    assert image.shape == x.shape and jnp.broadcast_shapes(log_scale.shape, x.shape) == x.shape
    assert model.autoregressive == (name == "powerful")


def test_labels_reach_both_halves_of_a_conditional_vae():
    model, params = tiny("conv")
    run = jax.jit(model.apply, static_argnames="method")
    labels = [{"label": jnp.array([i])} for i in (0, 1)]
    means = [run(params, jnp.ones((1, 8, 8, 1)), cond, method="encode")[0] for cond in labels]
    images = [run(params, jnp.ones((1, 3)), cond, method="decode")[0] for cond in labels]
    assert np.abs(means[0] - means[1]).max() > 1e-3 and np.abs(images[0] - images[1]).max() > 1e-3


def test_a_powerful_decoder_reads_the_pixels_before_each_and_no_others():
    """The derivative of pixel i's mean by pixel j of the image: nothing for j >= i in raster order,
    something before.
    """
    model, params = tiny("powerful")
    z, x = jnp.ones((1, 3)), jax.random.uniform(jax.random.key(0), (1, 8, 8, 1))
    by = jax.jacobian(lambda x: model.apply(params, z, None, x, method="decode")[0].reshape(64))(
        x
    ).reshape(64, 64)
    assert np.abs(np.triu(by)).max() == 0
    assert all(np.abs(by[i, i - 1]) > 0 for i in range(1, 64) if i % 8)
    assert all(np.abs(by[i, i - 8]) > 0 for i in range(8, 64))


def test_unrolled_pixels_are_the_draws_that_teacher_forcing_on_them_gives():
    """A fixed point: fed the finished image, the decoder draws it again from the same noise."""
    model, params = tiny("powerful")
    net = AutoencoderNetworks(
        None, lambda z, cond, x: model.apply(params, z, cond, x, method="decode")
    )
    law, z, keys = autoencoding.logistic(), jnp.ones((2, 3)), jax.random.split(jax.random.key(0), 2)
    image = variational.sample_pixels(net, law, z, keys, (8, 8, 1))
    again = law.draw(arrays.noise(keys, image), *net.decode(z, None, image))
    np.testing.assert_allclose(
        image, again, atol=2e-2
    )  # a level is 2 / 255: rounding may tip one over
    assert (np.abs(image - again) > 1e-3).mean() < 0.05
    assert np.abs(image[0] - image[1]).max() > 0.1


def test_the_discriminator_judges_patches_of_each_image_by_itself():
    model = PatchGAN(width=4, layers=2)
    judge, params = jax.jit(model.apply), random_params(model)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
    real, other = judge(params, x), judge(params, np.stack([x[0], 0 * x[1]]))
    assert real.shape == (2, 2, 2, 1)
    np.testing.assert_allclose(real[0], other[0], atol=1e-5)
    assert np.abs(real[1] - other[1]).min() > 1e-3


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="need sides that are multiples of 4"):
        _ = AutoencoderKL(shape=(30, 30, 1), multipliers=(1, 2, 4)).latent_shape
