"""Objectives of autoencoders: the evidence lower bound and its kin; reconstruction, with perceptual
distance and adversary.

    log p(x) >= E_q(z | x)[log p(x | z)] - KL(q(z | x) || N(0, I)) = -(distortion + rate)        (Kingma & Welling 2014, eq. 3)

Rate and distortion are in nats for a whole image, both (B,). What q and p are made of is not known
here: see AutoencoderNetworks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import arrays
from diffusion_jax.arrays import mean_per_example, sum_per_example
from diffusion_jax.errors import need_ranges, unknown
from diffusion_jax.likelihood.bounds import log_mean_exp
from diffusion_jax.objectives.base import per_example
from diffusion_jax.types import Array, Cond, Key, Process

LOG_2PI = math.log(2 * math.pi)


class AutoencoderNetworks(NamedTuple):
    """The players of a loss, with their parameters bound.

    encode(x, cond) -> (mean, log_variance) of q(z | x), (B, ...). decode(z, cond, x) -> (mean,
    log_scale) of p(x | z), (B, H, W, C) and what broadcasts to it; x is what an autoregressive
    decoder reads. The rest is for `reconstruction` alone: discriminate(x, frozen) -> logits (B,
    ...), frozen: no gradient reaches its parameters; features(x) -> a tuple of feature maps (B, h,
    w, c); last: (a, f), the kernel of the decoder's last layer and decode's mean as a function f(a,
    z) of it.
    """

    encode: Callable[[Array, Cond], tuple[Array, Array]]
    decode: Callable[..., tuple[Array, Array]]
    discriminate: Callable[[Array, bool], Array] | None = None
    features: Callable[[Array], tuple[Array, ...]] | None = None
    last: tuple[Array, Callable[[Array, Array], Array]] | None = None


class Autoencoding(NamedTuple):
    """draw(keys, like z (B, ...)) -> eps (samples, B, ...);  loss(networks, x, eps, cond, step) -> (losses (B,), metrics).

    keys: one for each example, (B,), or one for the batch.
    metrics: {name: (B,)}. likelihood: what the decoder's output means. features: the name of those
    the loss needs; adversarial: whether it needs a discriminator.
    """

    draw: Callable[[Key, Array], Array]
    loss: Callable[..., tuple[Array, dict[str, Array]]]
    likelihood: Likelihood
    features: str = ""
    adversarial: bool = False


# ---- p(x | z)
class Likelihood(NamedTuple):
    """A law of images given the decoder's (mean, log_scale), independent over pixels and channels.

    log_prob(mean, log_scale, x) -> (B,) nats; image(mean) -> the picture to show; draw(noise, mean,
    log_scale) -> an image, noise being unit Gaussians (B, H, W, C), which are moved to the law by
    its quantile function. is_discrete: whether it is a probability of the 256 greys of a pixel, whose
    bits compare with other models', rather than a density.
    """

    log_prob: Callable[[Array, Array, Array], Array]
    image: Callable[[Array], Array]
    draw: Callable[[Array, Array, Array], Array]
    is_discrete: bool = False


def gaussian(std: float = 0.0) -> Likelihood:
    """N(mean, std^2), a density on [-1, 1]; std = 0: the decoder's own, exp(log_scale) (one for
    all: Rybkin et al. 2021).
    """
    need_ranges("autoencoding.gaussian", std=(std, 0, 100))

    def scale(log_scale):
        return jnp.log(std) if std else log_scale

    def log_prob(mean, log_scale, x):
        s = scale(log_scale)
        return sum_per_example(-0.5 * ((x - mean) * jnp.exp(-s)) ** 2 - s - 0.5 * LOG_2PI)

    return Likelihood(
        log_prob,
        lambda mean: mean,
        lambda noise, mean, log_scale: mean + jnp.exp(scale(log_scale)) * noise,
    )


def bernoulli(binary: bool = False) -> Likelihood:
    """Black or white with probability sigmoid(mean), for x = 1 or -1; greys count as that fraction
    of white.

    binary: greys become black or white first. The bound is one on log p(x) for black and white
      images only.
    """

    def log_prob(logit, log_scale, x):
        white = jnp.where(x > 0, 1.0, 0.0) if binary else 0.5 * (x + 1)
        return sum_per_example(
            white * jax.nn.log_sigmoid(logit) + (1 - white) * jax.nn.log_sigmoid(-logit)
        )

    def draw(noise, logit, log_scale):
        return jnp.where(_logistic(noise) < logit, 1.0, -1.0)

    return Likelihood(log_prob, lambda logit: jnp.tanh(0.5 * logit), draw)


def logistic(levels: int = 256) -> Likelihood:
    """The discretised logistic of `levels` greys (Kingma et al. 2016, section 5.2; Salimans et al.
    2017, eq. 2, one component).

    P(x) = sigmoid((x + h - mean) / s) - sigmoid((x - h - mean) / s) with h = 1 / (levels - 1), s =
    exp(log_scale); the outer two bins reach to infinity, so the levels' probabilities sum to one.
    """
    need_ranges("autoencoding.logistic", levels=(levels, 2, 65_536))
    half = 1.0 / (levels - 1)

    def log_prob(mean, log_scale, x):
        inverse = jnp.exp(-log_scale)
        upper, lower = (x - mean + half) * inverse, (x - mean - half) * inverse
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)): no
        # difference of near numbers
        inner = (
            jax.nn.log_sigmoid(upper)
            + jax.nn.log_sigmoid(-lower)
            + jnp.log(-jnp.expm1(-2 * half * inverse))
        )
        ends = jnp.where(x < -1 + half, jax.nn.log_sigmoid(upper), inner)
        return sum_per_example(jnp.where(x > 1 - half, jax.nn.log_sigmoid(-lower), ends))

    def draw(noise, mean, log_scale):
        x = mean + jnp.exp(log_scale) * _logistic(noise)
        return jnp.rint((jnp.clip(x, -1, 1) + 1) / (2 * half)) * 2 * half - 1

    return Likelihood(log_prob, lambda mean: jnp.clip(mean, -1, 1), draw, is_discrete=True)


def _logistic(noise: Array) -> Array:
    """Unit Gaussians to the unit logistic law: logit(Phi(noise))."""
    return jax.scipy.special.log_ndtr(noise) - jax.scipy.special.log_ndtr(-noise)


# ---- bounds
def elbo(
    process: Process | None = None,
    likelihood: Likelihood = gaussian(),
    beta: float = 1.0,
    free_bits: float = 0.0,
    anneal: int = 0,
) -> Autoencoding:
    """distortion + beta rate, in nats, of one z from the posterior, the rate in closed form.
    process: none is needed.

    beta: weight of the rate (Higgins et al. 2017, eq. 4); 1 is the bound. anneal: it grows from 0
      to beta in so many steps (Bowman et al. 2016, section 3.1).
    free_bits: nats that a latent dimension, on average over the batch, may hold for nothing: its
      rate counts as max(free_bits, E_batch[KL_j]) (Kingma et al. 2016, eq. 15), against posterior
      collapse.
    Metrics: rate and distortion, without any of these.
    """
    need_ranges(
        "autoencoding.elbo",
        beta=(beta, 0, 1e6),
        free_bits=(free_bits, 0, 1e6),
        anneal=(anneal, 0, 10**9),
    )

    def loss(networks, x, eps, cond, step):
        mean, log_variance = networks.encode(x, cond)
        rates = kl(mean, log_variance).reshape(len(x), -1)  # (B, J)
        distortion = -_log_prob(networks, likelihood, x, _latent(mean, log_variance, eps[0]), cond)
        paid = (
            jnp.where(rates.mean(0) > free_bits, rates, free_bits).sum(1)
            if free_bits
            else rates.sum(1)
        )
        weight = beta * ramp(step, anneal)
        return distortion + weight * paid, {"rate": rates.sum(1), "distortion": distortion}

    return Autoencoding(latent_noise(1), loss, likelihood)


def iwae(
    process: Process | None = None, likelihood: Likelihood = gaussian(), samples: int = 8
) -> Autoencoding:
    """-log 1/k sum_i p(x, z_i) / q(z_i | x), z_i ~ q: the importance-weighted bound of k samples
    (Burda et al. 2016, eq. 8).
    """
    need_ranges("autoencoding.iwae", samples=(samples, 1, 10_000))

    def loss(networks, x, eps, cond, step):
        log_weights, rate, distortion = importance(networks, likelihood, x, eps, cond)
        return -log_mean_exp(log_weights, axis=0), {"rate": rate, "distortion": distortion}

    return Autoencoding(latent_noise(samples), loss, likelihood)


def importance(
    networks: AutoencoderNetworks,
    likelihood: Likelihood,
    x: Array,
    eps: Array,
    cond: Cond = None,
    *,
    loop: bool = False,
):
    """(log p(x, z_i) / q(z_i | x) for each eps, (samples, B); rate; distortion, the mean over
    samples): in nats.

    loop: a small program for many samples, without a gradient: those of convolutions are slow in
      loops on CPUs.
    """
    mean, log_variance = networks.encode(x, cond)

    def weight(eps):
        z = _latent(mean, log_variance, eps)
        log_ratio = 0.5 * sum_per_example(
            eps**2 + log_variance - z**2
        )  # log p(z) / q(z | x): the constants cancel
        log_p = _log_prob(networks, likelihood, x, z, cond)
        return log_p + log_ratio, log_p

    log_weights, log_p = (
        jax.lax.map(weight, eps) if loop else map(jnp.stack, zip(*map(weight, eps)))
    )
    return log_weights, sum_per_example(kl(mean, log_variance)), -log_p.mean(0)


def kl(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, elementwise."""
    return 0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance)


def ramp(step: Array, steps: int) -> Array:
    """From 0 to 1 in so many steps, linearly; 0 steps: 1."""
    return jnp.minimum(1.0, step / steps) if steps else jnp.float32(1.0)


def active_units(means: Array, threshold: float = 0.01) -> Array:
    """How many latent dimensions say something of x: Var_x(E_q[z_j | x]) > 0.01 (Burda et al. 2016,
    section 4).

    means: (N, ...), the posterior means of many images.
    """
    return jnp.sum(jnp.var(means, axis=0) > threshold)


def latent_noise(samples: int) -> Callable[[Key, Array], Array]:
    """eps (samples, B, ...), sample i of an example from its key's stream i."""
    return per_example(
        lambda keys, like: jax.vmap(lambda i: arrays.noise(arrays.fold_in(keys, i), like))(
            jnp.arange(samples)
        )
    )


def _latent(mean: Array, log_variance: Array, eps: Array) -> Array:
    """z ~ q(z | x), a function of eps (Kingma & Welling 2014, section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * eps


def _log_prob(
    networks: AutoencoderNetworks, likelihood: Likelihood, x: Array, z: Array, cond: Cond
) -> Array:
    return likelihood.log_prob(*networks.decode(z, cond, x), x)


# ---- reconstruction, as latent diffusion's autoencoders are trained
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
    """|x - x_hat| + perceptual d(x, x_hat) + kl_weight rate / D + adversarial w L_gan (Rombach et
    al. 2022, eq. 25).

    The loss of latent diffusion's autoencoders, in means over the D dimensions of the image, so
    that kl_weight means what it means in their code. pixels: 'l1' or 'l2'. d: the distance of
    `features`, 'classifier' (of this data set; evaluation/classifier.py) or 'lpips'. adversarial:
    weight of a PatchGAN's judgement from step `start` on, besides w = |dL_rec| / |dL_gan| in the
    decoder's last layer (Esser et al. 2021, eq. 7), which belongs to the batch as the step sees it.
    One scalar serves both players: the discriminator's hinge loss is added, with x_hat held fixed
    in it; and the discriminator's parameters are held fixed where it judges x_hat for the decoder.
    So each player's gradient is that of its own loss.
    Metrics: rate (nats), pixels, perceptual; with an adversary also generator, discriminator and
      adaptive_weight.
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

    def loss(networks, x, eps, cond, step):
        mean, log_variance = networks.encode(x, cond)
        z = _latent(mean, log_variance, eps[0])
        image = networks.decode(z, cond, x)[0]
        rate = sum_per_example(kl(mean, log_variance))

        def judged(image):
            """(mean error, mean distance), per example, of an image as the autoencoder is blamed
            for it.
            """
            distance = (
                feature_distance(networks.features(x), networks.features(image))
                if perceptual
                else jnp.zeros(len(x))
            )
            return mean_per_example(PIXELS[pixels](x - image)), distance

        error, distance = judged(image)
        total = error + perceptual * distance + kl_weight * rate / x[0].size
        metrics = {"rate": rate, "pixels": error, "perceptual": distance}
        if not adversarial:
            return total, metrics
        begun = jnp.where(step >= start, 1.0, 0.0)

        def blame(image):
            return jnp.mean(judged(image)[0] + perceptual * judged(image)[1])

        weight = adaptive_weight(
            networks, z, blame, lambda image: jnp.mean(generator_loss(networks, image))
        )
        generator, discriminator = (
            generator_loss(networks, image),
            discriminator_loss(networks, x, image),
        )
        total = total + begun * (adversarial * weight * generator + discriminator)
        weights = jnp.broadcast_to(weight, error.shape)
        return total, metrics | {
            "generator": generator,
            "discriminator": discriminator,
            "adaptive_weight": weights,
        }

    return Autoencoding(
        latent_noise(1), loss, gaussian(1.0), features if perceptual else "", bool(adversarial)
    )


def feature_distance(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """sum_l mean_hw |a_l - b_l|^2 over maps (B, h, w, c) that are normalised and weighted (Zhang et
    al. 2018, eq. 1): (B,).
    """
    return sum(jnp.mean(jnp.sum((x - y) ** 2, -1), axis=(1, 2)) for x, y in zip(a, b, strict=True))


def discriminator_loss(networks: AutoencoderNetworks, x: Array, image: Array) -> Array:
    """The discriminator's loss, (B,): 1/2 mean(max(0, 1 - D(x)) + max(0, 1 + D(x_hat))) (Lim & Ye
    2017), with x_hat fixed.
    """
    real, false = (
        networks.discriminate(x, False),
        networks.discriminate(jax.lax.stop_gradient(image), False),
    )
    return 0.5 * mean_per_example(jax.nn.relu(1 - real) + jax.nn.relu(1 + false))


def generator_loss(networks: AutoencoderNetworks, image: Array) -> Array:
    """The decoder's adversarial loss, (B,): -D(x_hat), the discriminator's parameters fixed."""
    return -mean_per_example(networks.discriminate(image, True))


def adaptive_weight(
    networks: AutoencoderNetworks, z: Array, reconstruction: Callable, generator: Callable
) -> Array:
    """|dL_rec / da| / (|dL_gan / da| + 1e-4), at most 1e4, a being the last layer's kernel. A
    constant to the gradient.
    """
    kernel, decode = jax.lax.stop_gradient(networks.last[0]), networks.last[1]
    image, pull = jax.vjp(lambda kernel: decode(kernel, jax.lax.stop_gradient(z)), kernel)
    size = [
        jnp.linalg.norm(pull(jax.grad(loss)(image))[0].ravel())
        for loss in (reconstruction, generator)
    ]
    return jax.lax.stop_gradient(jnp.clip(size[0] / (size[1] + 1e-4), 0.0, 1e4))


# ---- images out of latents
def mean_image(
    networks: AutoencoderNetworks, likelihood: Likelihood, z: Array, cond: Cond = None
) -> Array:
    """The picture of z, (B, H, W, C): the mean of p(x | z), which of a Gaussian has no bounds."""
    return likelihood.image(networks.decode(z, cond, None)[0])


def sample_pixels(
    networks: AutoencoderNetworks,
    likelihood: Likelihood,
    z: Array,
    keys: Key,
    shape: tuple[int, ...],
    cond: Cond = None,
) -> Array:
    """A draw of p(x | z), (B, *shape), pixel by pixel from a decoder that reads those before each:
    H W calls. keys: (B,).
    """
    height, width, _ = shape
    noise = arrays.noise(keys, jnp.zeros((len(z), *shape), z.dtype))

    def pixel(i, x):
        drawn = likelihood.draw(noise, *networks.decode(z, cond, x))
        return x.at[:, i // width, i % width].set(drawn[:, i // width, i % width])

    return jnp.clip(jax.lax.fori_loop(0, height * width, pixel, jnp.zeros_like(noise)), -1.0, 1.0)
