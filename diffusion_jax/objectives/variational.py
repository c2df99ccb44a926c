"""Variational autoencoders: the networks, the rate, importance weights, and images of latents.

    q(z | x) = N(mean, exp(log_variance)),    p(z) = N(0, I),    p(x | z) = likelihood(decode(z))

(Kingma & Welling 2014). Nothing here knows what the networks are made of: see
`AutoencoderNetworks`. The objectives are in autoencoding.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays
from diffusion_jax.core.arrays import sum_per_example
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.objectives.base import per_example


class AutoencoderNetworks(NamedTuple):
    """The networks of an autoencoder's loss, with their parameters bound.

    The last three are for autoencoding.reconstruction alone.

    Attributes:
      encode: a function (x, cond) -> (mean, log_variance) of q(z | x), both (B, ...).
      decode: a function (z, cond, x) -> (mean, log_scale) of p(x | z), (B, H, W, C) and anything
        that broadcasts to it. x is the image that an autoregressive decoder reads.
      discriminate: a function (x, frozen) -> logits, (B, ...). If frozen is true, the gradient does
        not reach the discriminator's parameters.
      features: a function (x) -> a tuple of feature maps, (B, h, w, c).
      last: (kernel, f), the kernel of the decoder's last layer, and decode's mean as a function
        f(kernel, z) of it.
    """

    encode: Callable[[Array, Cond], tuple[Array, Array]]
    decode: Callable[..., tuple[Array, Array]]
    discriminate: Callable[[Array, bool], Array] | None = None
    features: Callable[[Array], tuple[Array, ...]] | None = None
    last: tuple[Array, Callable[[Array, Array], Array]] | None = None


class Likelihood(NamedTuple):
    """A distribution of images given the decoder's (mean, log_scale), independent over pixels.

    Channels are independent as well.

    Attributes:
      log_prob: a function (mean, log_scale, x) -> log p(x | z) in nats, (B,).
      image: a function (mean) -> the image to show, (B, H, W, C).
      draw: a function (noise, mean, log_scale) -> an image. noise (B, H, W, C) is unit Gaussian and
        is mapped to the distribution by its quantile function.
      is_discrete: whether it is a probability of the 256 levels of a pixel, whose bits can be
        compared with other models', rather than a density.
      gray_levels: whether it is a distribution of numbers in [-1, 1] alone, the gray of images.
    """

    log_prob: Callable[[Array, Array, Array], Array]
    image: Callable[[Array], Array]
    draw: Callable[[Array, Array, Array], Array]
    is_discrete: bool = False
    gray_levels: bool = False


def kl(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats (Kingma & Welling 2014, appendix B).

    Args:
      mean: means, of any shape.
      log_variance: logarithms of the variances, of mean's shape.

    Returns:
      The divergence of each element in nats, of mean's shape.
    """
    return 0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance)


def latent_noise(samples: int) -> Callable[[Key, Array], Array]:
    """Draws the unit noise of several latents per example.

    Args:
      samples: number of latents per example.

    Returns:
      A function (keys, like z (B, ...)) -> eps (samples, B, ...). keys: one for each example, (B,),
      or one for the batch. Sample i of an example is drawn from its key folded with i.
    """
    return per_example(
        lambda keys, like: jax.vmap(lambda i: arrays.noise(arrays.fold_in(keys, i), like))(
            jnp.arange(samples)
        )
    )


def sample_latent(mean: Array, log_variance: Array, eps: Array) -> Array:
    """Draws z ~ q(z | x) as a function of noise (Kingma & Welling 2014, section 2.4).

    Args:
      mean: mean of q(z | x), (B, ...).
      log_variance: log-variance of q(z | x), (B, ...).
      eps: unit Gaussian noise, (B, ...).

    Returns:
      z, (B, ...).
    """
    return mean + jnp.exp(0.5 * log_variance) * eps


def log_prob(
    networks: AutoencoderNetworks, likelihood: Likelihood, x: Array, z: Array, cond: Cond
) -> Array:
    """Computes log p(x | z) in nats.

    Args:
      networks: the autoencoder, of which only the decoder is used.
      likelihood: what the decoder's output means.
      x: images, (B, H, W, C).
      z: latents, (B, ...).
      cond: the condition, with leading axis B, or None.

    Returns:
      The log-probabilities or log-densities of images, (B,).
    """
    return likelihood.log_prob(*networks.decode(z, cond, x), x)


def importance(
    networks: AutoencoderNetworks,
    likelihood: Likelihood,
    x: Array,
    eps: Array,
    cond: Cond = None,
    *,
    loop: bool = False,
) -> tuple[Array, Array, Array]:
    """Computes log p(x, z_i) / q(z_i | x) for z_i ~ q(z | x), in nats.

    Args:
      networks: the autoencoder: its encoder and decoder are used.
      likelihood: what the decoder's output means.
      x: images, (B, H, W, C).
      eps: the unit noise of z_i, (samples, B, ...).
      cond: the condition, with leading axis B, or None.
      loop: compiles a small program for many samples, one after the other.

    Returns:
      The log-weights (samples, B), the rate (B,), and the distortion (B,), a mean over samples.
    """
    mean, log_variance = networks.encode(x, cond)

    def weight(eps: Array) -> tuple[Array, Array]:
        z = sample_latent(mean, log_variance, eps)
        # log p(z) / q(z | x); the constants cancel
        log_ratio = 0.5 * sum_per_example(eps**2 + log_variance - z**2)
        log_p = log_prob(networks, likelihood, x, z, cond)
        return log_p + log_ratio, log_p

    log_weights, log_p = (
        jax.lax.map(weight, eps) if loop else map(jnp.stack, zip(*map(weight, eps)))
    )
    return log_weights, sum_per_example(kl(mean, log_variance)), -log_p.mean(0)


def active_units(means: Array, threshold: float = 0.01) -> Array:
    """Counts the latent dimensions that depend on x (Burda et al. 2016, section 4).

        Var_x(E_q[z_j | x]) > threshold

    Args:
      means: the posterior means of many images, (N, ...).
      threshold: variance of the posterior mean over images above which a dimension is active.

    Returns:
      The number of active dimensions, a scalar.
    """
    return jnp.sum(jnp.var(means, axis=0) > threshold)


# ---- images of latents
def mean_image(
    networks: AutoencoderNetworks, likelihood: Likelihood, z: Array, cond: Cond = None
) -> Array:
    """The image of a latent: the mean of p(x | z), which is not bounded for a Gaussian.

    Args:
      networks: the autoencoder, of which only the decoder is used.
      likelihood: what the decoder's output means.
      z: latents, (B, ...).
      cond: the condition, with leading axis B, or None.

    Returns:
      Images, (B, H, W, C).
    """
    return likelihood.image(networks.decode(z, cond, None)[0])


def sample_pixels(
    networks: AutoencoderNetworks,
    likelihood: Likelihood,
    z: Array,
    keys: Key,
    shape: tuple[int, ...],
    cond: Cond = None,
) -> Array:
    """Draws x ~ p(x | z) of an autoregressive decoder, pixel by pixel in H W calls of the decoder.

    Args:
      networks: the autoencoder, of which only the decoder is used.
      likelihood: what the decoder's output means.
      z: latents, (B, ...).
      keys: one key per image, (B,).
      shape: shape of an image, (H, W, C).
      cond: the condition, with leading axis B, or None.

    Returns:
      Images in [-1, 1], (B, H, W, C).
    """
    height, width, _ = shape
    noise = arrays.noise(keys, jnp.zeros((len(z), *shape), z.dtype))

    def pixel(i: Array, x: Array) -> Array:
        drawn = likelihood.draw(noise, *networks.decode(z, cond, x))
        return x.at[:, i // width, i % width].set(drawn[:, i // width, i % width])

    return jnp.clip(jax.lax.fori_loop(0, height * width, pixel, jnp.zeros_like(noise)), -1.0, 1.0)
