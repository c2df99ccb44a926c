"""Terms of a reconstruction loss that compare images: features, and an adversary (VQGAN's).

They follow Esser et al. 2021 ("Taming transformers for high-resolution image synthesis"). One
scalar loss trains both networks: each term holds fixed whatever it must not train.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.core.arrays import mean_per_example
from diffusion_jax.core.types import Array
from diffusion_jax.objectives.variational import AutoencoderNetworks


def feature_distance(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """The distance sum_l mean_hw |a_l - b_l|^2 of feature maps (Zhang et al. 2018, eq. 1).

    Args:
      a: feature maps of the first images, normalized and weighted, each (B, h, w, c).
      b: feature maps of the second images, like `a`.

    Returns:
      The distances, (B,).
    """
    return sum(jnp.mean(jnp.sum((x - y) ** 2, -1), axis=(1, 2)) for x, y in zip(a, b, strict=True))


def discriminator_loss(networks: AutoencoderNetworks, x: Array, image: Array) -> Array:
    """The hinge loss of the discriminator D (Lim & Ye 2017), with the reconstruction held fixed.

        1/2 mean(max(0, 1 - D(x)) + max(0, 1 + D(x_hat)))

    Args:
      networks: the autoencoder and its discriminator, of which only `discriminate` is used.
      x: real images, (B, H, W, C).
      image: reconstructions x_hat, (B, H, W, C).

    Returns:
      The losses, (B,).
    """
    real = networks.discriminate(x, False)
    fake = networks.discriminate(jax.lax.stop_gradient(image), False)
    return 0.5 * mean_per_example(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))


def generator_loss(networks: AutoencoderNetworks, image: Array) -> Array:
    """The adversarial loss of the decoder, -D(x_hat), with the discriminator held fixed.

    Args:
      networks: the autoencoder and its discriminator, of which only `discriminate` is used.
      image: reconstructions x_hat, (B, H, W, C).

    Returns:
      The losses, (B,).
    """
    return -mean_per_example(networks.discriminate(image, True))


def adaptive_weight(
    networks: AutoencoderNetworks,
    z: Array,
    reconstruction: Callable[[Array], Array],
    generator: Callable[[Array], Array],
) -> Array:
    """The weight of the adversarial loss (Esser et al. 2021, eq. 7).

        |dL_rec / da| / (|dL_gan / da| + 1e-4), at most 1e4

    a is the kernel of the decoder's last layer.

    Args:
      networks: the autoencoder, of which only `last`, the decoder's last layer, is used.
      z: latents, (B, ...).
      reconstruction: the reconstruction loss, a function (images) -> a scalar.
      generator: the adversarial loss of the decoder, a function (images) -> a scalar.

    Returns:
      The weight, a scalar without a gradient.
    """
    kernel, decode = jax.lax.stop_gradient(networks.last[0]), networks.last[1]
    image, pull = jax.vjp(lambda kernel: decode(kernel, jax.lax.stop_gradient(z)), kernel)
    size = [
        jnp.linalg.norm(pull(jax.grad(loss)(image))[0].ravel())
        for loss in (reconstruction, generator)
    ]
    return jax.lax.stop_gradient(jnp.clip(size[0] / (size[1] + 1e-4), 0.0, 1e4))
