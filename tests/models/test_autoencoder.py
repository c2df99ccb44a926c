"""The networks of autoencoders and their discriminator: shapes, labels, and the order of pixels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.models.autoencoder import VAE, AutoencoderKL
from diffusion_jax.models.discriminator import PatchGAN
from diffusion_jax.objectives import autoencoding, variational
from diffusion_jax.objectives.variational import AutoencoderNetworks

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


def test_sampled_pixels_are_the_draws_that_teacher_forcing_on_them_gives():
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
