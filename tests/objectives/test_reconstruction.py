"""The reconstruction loss: the gradient of each network, and perceptual distances."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import classifier
from diffusion_jax.objectives import adversarial, autoencoding
from diffusion_jax.objectives.variational import AutoencoderNetworks
from diffusion_jax.pretrained import lpips, weights
from tests.fixtures import make_lpips_fixtures
from tests.objectives.images import IMAGES, Q_MEAN, W, sigma_points


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


PARAMS = {
    "autoencoder": {"in": jnp.asarray(Q_MEAN.T), "out": jnp.asarray(W.T)},
    "discriminator": jnp.asarray([[0.5], [1.5]]).reshape(1, 2, 1),
}


def test_each_networks_gradient_is_that_of_its_own_loss():
    objective = autoencoding.reconstruction(
        pixels="l2", kl_weight=0.1, perceptual=0.5, adversarial=0.7
    )
    eps, kind = sigma_points()[:1], jnp.float32

    def total(params):
        return objective.loss(networks(params), IMAGES, eps, None, jnp.int32(0))[0].mean()

    found = jax.grad(total)(PARAMS)
    _, metrics = objective.loss(networks(PARAMS), IMAGES, eps, None, jnp.int32(0))
    weight = kind(metrics["adaptive_weight"][0])

    def autoencoders(own):
        """The loss of the autoencoder by hand; discriminator and weight are constants."""
        net = networks(PARAMS | {"autoencoder": own})
        mean, _ = net.encode(IMAGES, None)
        image = net.decode(mean + eps[0], None, IMAGES)[0]
        error = jnp.mean((image - IMAGES) ** 2)
        distance = jnp.sum((image - IMAGES) ** 2, -1).mean()  # features are the pixels
        rate = 0.5 * jnp.sum(mean**2, 1).mean()
        fooled = -((image**2 * PARAMS["discriminator"]) - 0.1).mean()
        return error + 0.5 * distance + 0.1 * rate / 4 + 0.7 * weight * fooled

    def discriminators(own):
        net = networks(PARAMS | {"discriminator": own})
        image = net.decode(net.encode(IMAGES, None)[0] + eps[0], None, IMAGES)[0]

        def score(x):
            return (x**2 * own).reshape(-1, 4) - 0.1

        return 0.5 * jnp.mean(jax.nn.relu(1 - score(IMAGES)) + jax.nn.relu(1 + score(image)))

    expected = {
        "autoencoder": jax.grad(autoencoders)(PARAMS["autoencoder"]),
        "discriminator": jax.grad(discriminators)(PARAMS["discriminator"]),
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), found, expected
    )
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


def test_the_adaptive_weight_is_the_ratio_of_gradients_in_the_last_layer():
    objective = autoencoding.reconstruction(pixels="l2", perceptual=0.0, adversarial=0.7, start=5)
    eps = sigma_points()[:1]
    net = networks(PARAMS)
    z = net.encode(IMAGES, None)[0] + eps[0]

    def image(kernel):
        return net.last[1](kernel, z)

    by_error = jax.grad(lambda k: jnp.mean((image(k) - IMAGES) ** 2))(net.last[0])
    by_judge = jax.grad(lambda k: -jnp.mean(image(k) ** 2 * PARAMS["discriminator"]))(net.last[0])
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


FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_lpips_equals_the_authors_torch_code():
    """With made-up parameters, and with the real ones if they are in the cache of the user."""
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
