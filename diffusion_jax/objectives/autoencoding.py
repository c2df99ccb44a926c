"""Objectives of autoencoders: the evidence lower bound and its relatives, and reconstruction.

    log p(x) >= E_q(z | x)[log p(x | z)] - KL(q(z | x) || N(0, I)) = -(distortion + rate)

(Kingma & Welling 2014, eq. 3). Rate and distortion are in nats for a whole image, both (B,). The
networks and the quantities that the objectives share are in variational.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core.arrays import mean_per_example, sum_per_example
from diffusion_jax.core.errors import need_ranges, unknown
from diffusion_jax.core.types import Array, Cond, Key, Process
from diffusion_jax.likelihood.bounds import log_mean_exp
from diffusion_jax.objectives.adversarial import (
    adaptive_weight,
    discriminator_loss,
    feature_distance,
    generator_loss,
)
from diffusion_jax.objectives.variational import (
    AutoencoderNetworks,
    Likelihood,
    importance,
    kl,
    latent_noise,
    log_prob,
    sample_latent,
)

LOG_2PI = math.log(2 * math.pi)


class Autoencoding(NamedTuple):
    """An objective of autoencoders.

    Attributes:
      draw: a function (keys, like z (B, ...)) -> eps (samples, B, ...). keys: one for each example,
        (B,), or one for the batch.
      loss: a function (networks, x, eps, cond, step) -> (losses (B,), metrics {name: (B,)}).
      likelihood: what the decoder's output means.
      features: the name of the features that the loss compares images by; '' for none.
      adversarial: whether the loss needs a discriminator.
    """

    draw: Callable[[Key, Array], Array]
    loss: Callable[..., tuple[Array, dict[str, Array]]]
    likelihood: Likelihood
    features: str = ""
    adversarial: bool = False


# ---- likelihoods p(x | z)
def gaussian(std: float = 0.0) -> Likelihood:
    """The Gaussian N(mean, std^2), a density on [-1, 1].

    Args:
      std: standard deviation; 0 means the decoder's own, exp(log_scale), which may be one learned
        number for all pixels (Rybkin et al. 2021).

    Returns:
      The likelihood.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("autoencoding.gaussian", std=(std, 0, 100))

    def scale(log_scale: Array) -> Array:
        return jnp.log(std) if std else log_scale

    def log_density(mean: Array, log_scale: Array, x: Array) -> Array:
        s = scale(log_scale)
        return sum_per_example(-0.5 * ((x - mean) * jnp.exp(-s)) ** 2 - s - 0.5 * LOG_2PI)

    def draw(noise: Array, mean: Array, log_scale: Array) -> Array:
        return mean + jnp.exp(scale(log_scale)) * noise

    return Likelihood(log_density, lambda mean: mean, draw)


def bernoulli(binary: bool = False) -> Likelihood:
    """Black or white with probability sigmoid(mean) of white, x = 1; black is x = -1.

    Gray counts as that fraction of white.

    Args:
      binary: rounds gray to black or white first. Only for black and white images is the bound one
        on log p(x).

    Returns:
      The likelihood.
    """

    def log_probability(logit: Array, log_scale: Array, x: Array) -> Array:
        white = jnp.where(x > 0, 1.0, 0.0) if binary else 0.5 * (x + 1)
        return sum_per_example(
            white * jax.nn.log_sigmoid(logit) + (1 - white) * jax.nn.log_sigmoid(-logit)
        )

    def draw(noise: Array, logit: Array, log_scale: Array) -> Array:
        return jnp.where(_logistic(noise) < logit, 1.0, -1.0)

    return Likelihood(log_probability, lambda logit: jnp.tanh(0.5 * logit), draw, gray_levels=True)


def logistic(levels: int = 256) -> Likelihood:
    """The discretized logistic distribution of gray levels (Kingma et al. 2016, section 5.2).

        P(x) = sigmoid((x + h - mean) / s) - sigmoid((x - h - mean) / s)

    with h = 1 / (levels - 1) and s = exp(log_scale): one component of Salimans et al. 2017, eq. 2.
    The two outer bins extend to infinity, so that the probabilities of the levels sum to one.

    Args:
      levels: number of gray levels.

    Returns:
      The likelihood.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("autoencoding.logistic", levels=(levels, 2, 65_536))
    half = 1.0 / (levels - 1)

    def log_probability(mean: Array, log_scale: Array, x: Array) -> Array:
        inverse = jnp.exp(-log_scale)
        upper, lower = (x - mean + half) * inverse, (x - mean - half) * inverse
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)),
        # which is no difference of nearly equal numbers
        inner = (
            jax.nn.log_sigmoid(upper)
            + jax.nn.log_sigmoid(-lower)
            + jnp.log(-jnp.expm1(-2 * half * inverse))
        )
        ends = jnp.where(x < -1 + half, jax.nn.log_sigmoid(upper), inner)
        return sum_per_example(jnp.where(x > 1 - half, jax.nn.log_sigmoid(-lower), ends))

    def draw(noise: Array, mean: Array, log_scale: Array) -> Array:
        x = mean + jnp.exp(log_scale) * _logistic(noise)
        return jnp.rint((jnp.clip(x, -1, 1) + 1) / (2 * half)) * 2 * half - 1

    kinds = {"is_discrete": True, "gray_levels": True}
    return Likelihood(log_probability, lambda mean: jnp.clip(mean, -1, 1), draw, **kinds)


def _logistic(noise: Array) -> Array:
    """Maps unit Gaussian noise to the unit logistic distribution: logit(Phi(noise))."""
    return jax.scipy.special.log_ndtr(noise) - jax.scipy.special.log_ndtr(-noise)


# ---- bounds
def elbo(
    process: Process | None = None,
    likelihood: Likelihood = gaussian(),
    beta: float = 1.0,
    free_bits: float = 0.0,
    anneal: int = 0,
) -> Autoencoding:
    """The evidence lower bound (Kingma & Welling 2014, eq. 3): distortion + beta rate, in nats.

    One z is drawn from the posterior, and the rate is in closed form. The metrics are rate and
    distortion, without beta, free bits and annealing.

    Args:
      process: not used; every objective takes it.
      likelihood: what the decoder's output means.
      beta: weight of the rate (Higgins et al. 2017, eq. 4); 1 is the bound.
      free_bits: nats of rate that a latent dimension may have at no cost, against posterior
        collapse: its rate counts as max(free_bits, E_batch[KL_j]) (Kingma et al. 2016, eq. 15).
      anneal: number of steps in which the weight grows linearly from 0 to beta (Bowman et al. 2016,
        section 3.1).

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges(
        "autoencoding.elbo",
        beta=(beta, 0, 1e6),
        free_bits=(free_bits, 0, 1e6),
        anneal=(anneal, 0, 10**9),
    )

    def loss(
        networks: AutoencoderNetworks, x: Array, eps: Array, cond: Cond, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        mean, log_variance = networks.encode(x, cond)
        rates = kl(mean, log_variance).reshape(len(x), -1)  # (B, J)
        z = sample_latent(mean, log_variance, eps[0])
        distortion = -log_prob(networks, likelihood, x, z, cond)
        counted = jnp.where(rates.mean(0) > free_bits, rates, free_bits) if free_bits else rates
        weight = beta * ramp(step, anneal)
        metrics = {"rate": rates.sum(1), "distortion": distortion}
        return distortion + weight * counted.sum(1), metrics

    return Autoencoding(latent_noise(1), loss, likelihood)


def iwae(
    process: Process | None = None, likelihood: Likelihood = gaussian(), samples: int = 8
) -> Autoencoding:
    """The importance-weighted bound of k samples (Burda et al. 2016, eq. 8), in nats.

        -log 1/k sum_i p(x, z_i) / q(z_i | x),    z_i ~ q(z | x)

    Args:
      process: not used; every objective takes it.
      likelihood: what the decoder's output means.
      samples: k, the number of draws of z for an image; 1 is the ELBO, estimated.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("autoencoding.iwae", samples=(samples, 1, 10_000))

    def loss(
        networks: AutoencoderNetworks, x: Array, eps: Array, cond: Cond, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        log_weights, rate, distortion = importance(networks, likelihood, x, eps, cond)
        return -log_mean_exp(log_weights, axis=0), {"rate": rate, "distortion": distortion}

    return Autoencoding(latent_noise(samples), loss, likelihood)


def ramp(step: Array, steps: int) -> Array:
    """Grows linearly from 0 to 1.

    Args:
      step: the current step, a scalar.
      steps: number of steps until 1; 0 gives 1 from the start.

    Returns:
      A scalar in [0, 1].
    """
    return jnp.minimum(1.0, step / steps) if steps else jnp.float32(1.0)


# ---- reconstruction
PIXELS = {"l1": jnp.abs, "l2": jnp.square}


def reconstruction(
    process: Process | None = None,
    pixels: str = "l1",
    kl_weight: float = 1e-6,
    perceptual: float = 1.0,
    features: str = "classifier",
    adversarial: float = 0.0,
    start: int = 0,
) -> Autoencoding:
    """The loss of latent diffusion's autoencoders (Rombach et al. 2022, eq. 25).

        |x - x_hat| + perceptual d(x, x_hat) + kl_weight rate / D + adversarial w L_gan

    The terms are means over the D dimensions of the image, so that kl_weight means what it means in
    the paper's code. w is the weight of `adversarial.adaptive_weight`, of the batch as the train
    step sees it. The discriminator's hinge loss is added to the same scalar. The gradient of each
    network is nevertheless that of its own loss: x_hat is held fixed in the discriminator's loss,
    and the discriminator in the decoder's loss.

    The metrics are rate (nats), pixels and perceptual; with a discriminator also generator,
    discriminator and adaptive_weight.

    Args:
      process: not used; every objective takes it.
      pixels: the error of a pixel, 'l1' or 'l2'.
      kl_weight: weight of the rate.
      perceptual: weight of the distance d of features.
      features: the features of d: 'classifier', of a classifier of the same data, or 'lpips'.
      adversarial: weight of a PatchGAN's loss; 0 is training without a discriminator.
      start: the step from which on the discriminator takes part.

    Returns:
      The objective.

    Raises:
      UserError: if `pixels` is unknown or a number is out of range.
    """
    need_ranges(
        "autoencoding.reconstruction",
        kl_weight=(kl_weight, 0, 1e6),
        perceptual=(perceptual, 0, 1e6),
        adversarial=(adversarial, 0, 1e6),
        start=(start, 0, 10**9),
    )
    if pixels not in PIXELS:
        raise unknown("pixels", pixels, PIXELS)
    loss = _reconstruction_loss(pixels, kl_weight, perceptual, adversarial, start)
    features = features if perceptual else ""
    return Autoencoding(latent_noise(1), loss, gaussian(1.0), features, bool(adversarial))


def _reconstruction_loss(
    pixels: str, kl_weight: float, perceptual: float, adversarial: float, start: int
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The loss of `reconstruction`, with its arguments."""

    def errors(networks: AutoencoderNetworks, x: Array, image: Array) -> tuple[Array, Array]:
        """(mean error of the pixels, distance of the features), both (B,)."""
        distance = jnp.zeros(len(x))
        if perceptual:
            distance = feature_distance(networks.features(x), networks.features(image))
        return mean_per_example(PIXELS[pixels](x - image)), distance

    def loss(
        networks: AutoencoderNetworks, x: Array, eps: Array, cond: Cond, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        mean, log_variance = networks.encode(x, cond)
        z = sample_latent(mean, log_variance, eps[0])
        image = networks.decode(z, cond, x)[0]
        rate = sum_per_example(kl(mean, log_variance))
        error, distance = errors(networks, x, image)
        total = error + perceptual * distance + kl_weight * rate / x[0].size
        metrics = {"rate": rate, "pixels": error, "perceptual": distance}
        if not adversarial:
            return total, metrics

        def mean_error(image: Array) -> Array:
            error, distance = errors(networks, x, image)
            return jnp.mean(error + perceptual * distance)

        weight = adaptive_weight(
            networks, z, mean_error, lambda image: jnp.mean(generator_loss(networks, image))
        )
        generator = generator_loss(networks, image)
        discriminator = discriminator_loss(networks, x, image)
        active = jnp.where(step >= start, 1.0, 0.0)
        total = total + active * (adversarial * weight * generator + discriminator)
        return total, metrics | {
            "generator": generator,
            "discriminator": discriminator,
            "adaptive_weight": jnp.broadcast_to(weight, error.shape),
        }

    return loss


# The members of the family, which a config may name.
OBJECTIVES = (elbo, iwae, reconstruction)

LIKELIHOODS = (gaussian, bernoulli, logistic)
