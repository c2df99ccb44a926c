"""Autoencoders: networks from an image to a distribution of latents, and from a latent to images.

All of them have one interface, which is all that objectives/variational.py knows of them:

    encode(x, cond, train) -> (mean, log_variance), both (B, *latent_shape)
    decode(z, cond, x, train) -> (mean (B, H, W, C), log_scale, which broadcasts to it)

The first is q(z | x), a diagonal Gaussian; the second is p(x | z), whose kind the objective
chooses. x in decode is the image itself, for decoders that predict a pixel from those before it.
Inputs and outputs are float32, and images are in [-1, 1].
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import layers
from diffusion_jax.models.embeddings import KERNEL_INIT, LabelEmbedding
from diffusion_jax.models.normalization import group_norm
from diffusion_jax.models.pixelcnn import PixelCNN

LOG_VARIANCE = (-30.0, 20.0)  # as latent diffusion's code clips it


class AutoencoderKL(nn.Module):
    """The autoencoder of latent diffusion (Rombach et al. 2022, appendix G).

    Its layout is that of the class of this name in diffusers, whose state dicts become parameters
    by renaming and transposing, for any block_out_channels with a common divisor `width`. log_scale
    is 0: the image is the decoder's mean. Labels are ignored.

    Attributes:
      num_classes: not used.
      shape: (H, W, C) of the images. The network is convolutional and takes other sizes too, but C
        is the decoder's.
      latent_channels: 4 in Stable Diffusion 1 and 2, 16 in 3.
      width: channels of the first level.
      multipliers: level i has width * multipliers[i] channels at half the resolution of the level
        before.
      blocks: residual blocks per level of the encoder; the decoder has one more.
      norm: (groups, epsilon) of every group norm; None: see normalization.group_norm.
      attention: one head over the pixels in the middle of encoder and decoder.
      quant: the 1x1 convolutions on both sides of the latent.
      stem: 2 packs each 2 x 2 block of pixels into channels first, and unpacks it last: a quarter
        of the work (not in diffusers).
      dtype: type of convolutions and attention.
    """

    num_classes: int = 0
    shape: tuple[int, ...] = (256, 256, 3)
    latent_channels: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    norm: tuple[int, float] | None = (32, 1e-6)
    attention: bool = True
    quant: bool = True
    stem: int = 1
    dtype: str = "float32"

    autoregressive = False

    def setup(self) -> None:
        """Makes the submodules."""
        options = {
            "width": self.width,
            "multipliers": self.multipliers,
            "blocks": self.blocks,
            "stem": self.stem,
            "norm": self.norm,
            "attention": self.attention,
            "dtype": self.dtype,
        }
        self.encoder = _Encoder(2 * self.latent_channels, **options)
        self.decoder = _Decoder(self.shape[-1], **options | {"blocks": self.blocks + 1})
        if self.quant:
            self.quant_conv = layers.conv(2 * self.latent_channels, 1, name="quant_conv")
            self.post_quant_conv = layers.conv(self.latent_channels, 1, name="post_quant_conv")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the latents of images of `shape`.

        Raises:
          UserError: if the images cannot be halved often enough.
        """
        return (*_halved(self.shape, self.stem, self.multipliers), self.latent_channels)

    def __call__(self, x: Array, cond: Cond = None, train: bool = False) -> tuple[Array, Array]:
        """Reconstructs images from the mean of the latent.

        Args:
          x: images, (B, H, W, C).
          cond: ignored.
          train: ignored.

        Returns:
          (mean, 0), as `decode` returns them.
        """
        return self.decode(self.encode(x, cond, train)[0], cond, x, train)

    def encode(self, x: Array, cond: Cond = None, train: bool = False) -> tuple[Array, Array]:
        """Computes q(z | x).

        Args:
          x: images, (B, H, W, C).
          cond: ignored.
          train: ignored.

        Returns:
          (mean, log_variance), both (B, H / f, W / f, latent_channels), f = stem 2^(levels - 1).
        """
        h = self.encoder(x)
        h = self.quant_conv(h) if self.quant else h
        mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(
        self, z: Array, cond: Cond = None, x: Array | None = None, train: bool = False
    ) -> tuple[Array, Array]:
        """Computes p(x | z).

        Args:
          z: latents, (B, h, w, latent_channels).
          cond: ignored.
          x: ignored.
          train: ignored.

        Returns:
          (mean, 0), the mean being images (B, H, W, C).
        """
        h = self.post_quant_conv(z) if self.quant else z
        return self.decoder(h).astype(jnp.float32), jnp.zeros(())


class VAE(nn.Module):
    """The variational autoencoder (Kingma & Welling 2014) with a latent vector.

    Examples are images or points. With classes, a learned vector for the label (label num_classes:
    "no class") is added to the features that the latent is read from, and another is concatenated
    to the latent that is decoded.

    Attributes:
      num_classes: number of classes; 0 ignores labels.
      shape: shape of an example: (H, W, C), or (D,) with hidden units.
      latent: dimensions of z.
      hidden: the hidden units of a perceptron from the example to the latent, and in reverse order
        back. () is a convolutional network instead: encoder and decoder of AutoencoderKL without
        attention and with a dense layer each.
      width: channels of the first level of the convolutional network.
      multipliers: multipliers of the convolutional network, as in AutoencoderKL.
      blocks: residual blocks of the convolutional network, as in AutoencoderKL.
      norm: group norm of the convolutional network, as in AutoencoderKL.
      stem: stem of the convolutional network, as in AutoencoderKL.
      log_scale: 'shared', one learned number for all pixels (Rybkin et al. 2021), or 'pixel', one
        more output for each.
      pixel_layers: 0: pixels are independent given z, a weak decoder. Otherwise a powerful decoder:
        this many masked 5 x 5 convolutions predict each pixel from those before it, besides z (van
        den Oord et al. 2016, section 3.4; Gulrajani et al. 2017). The colors of a pixel are
        independent of each other.
      pixel_width: channels of the masked convolutions.
      dtype: type of the convolutional encoder and decoder.
    """

    num_classes: int = 0
    shape: tuple[int, ...] = (28, 28, 1)
    latent: int = 32
    hidden: tuple[int, ...] = ()
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    norm: tuple[int, float] | None = None
    stem: int = 1
    log_scale: str = "shared"
    pixel_layers: int = 0
    pixel_width: int = 32
    dtype: str = "float32"

    def setup(self) -> None:
        """Creates the submodules.

        Raises:
          UserError: for an unknown log_scale.
        """
        if self.log_scale not in ("shared", "pixel"):
            raise unknown("log_scale", self.log_scale, ["shared", "pixel"])
        outputs = self.shape[-1] * (2 if self.log_scale == "pixel" else 1)
        if self.hidden:
            sizes = (*reversed(self.hidden), math.prod(self.shape[:-1]) * outputs)
            self.encoder = _Perceptron(self.hidden)
            self.decoder = _Perceptron(sizes)
        else:
            options = {
                "width": self.width,
                "multipliers": self.multipliers,
                "blocks": self.blocks,
                "stem": self.stem,
                "norm": self.norm,
                "attention": False,
                "dtype": self.dtype,
            }
            self.encoder = _Encoder(self.width * self.multipliers[-1], **options)
            self.decoder = _Decoder(outputs, **options)
            self.unfold = _dense(math.prod(self._map()))
        self.moments = _dense(2 * self.latent)
        if self.num_classes:
            features = self.hidden[-1] if self.hidden else math.prod(self._map())
            self.label_seen = LabelEmbedding(self.num_classes, features)
            self.label_drawn = LabelEmbedding(self.num_classes, self.latent)
        if self.pixel_layers:
            self.pixels = PixelCNN(outputs, self.pixel_width, self.pixel_layers)
        if self.log_scale == "shared":
            self.shared = self.param("log_scale", nn.initializers.constant(-1.0), ())

    @property
    def latent_shape(self) -> tuple[int]:
        """The shape of a latent, (latent,)."""
        return (self.latent,)

    @property
    def autoregressive(self) -> bool:
        """Whether `decode` reads the image, for each pixel those before it."""
        return self.pixel_layers > 0

    def __call__(self, x: Array, cond: Cond = None, train: bool = False) -> tuple[Array, Array]:
        """Reconstructs examples from the mean of the latent.

        Args:
          x: examples, (B, *shape).
          cond: None, or a dict with 'label' (B,).
          train: ignored.

        Returns:
          (mean, log_scale), as `decode` returns them.
        """
        return self.decode(self.encode(x, cond, train)[0], cond, x, train)

    def encode(self, x: Array, cond: Cond = None, train: bool = False) -> tuple[Array, Array]:
        """Computes q(z | x).

        Args:
          x: examples, (B, *shape).
          cond: None, or a dict with 'label' (B,).
          train: ignored.

        Returns:
          (mean, log_variance), both (B, latent).
        """
        h = self.encoder(x.reshape(len(x), -1) if self.hidden else x).reshape(len(x), -1)
        if self.num_classes:
            h = h + self.label_seen((cond or {}).get("label"), len(x))
        mean, log_variance = jnp.split(self.moments(jax.nn.silu(h).astype(jnp.float32)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(
        self, z: Array, cond: Cond = None, x: Array | None = None, train: bool = False
    ) -> tuple[Array, Array]:
        """Computes p(x | z).

        Args:
          z: latents, (B, latent).
          cond: None, or a dict with 'label' (B,).
          x: the images (B, *shape), of which an autoregressive decoder reads, for each pixel, those
            before it; other decoders ignore them.
          train: ignored.

        Returns:
          (mean (B, *shape), log_scale), the log_scale being a scalar or of the mean's shape.
        """
        if self.num_classes:
            z = jnp.concatenate([z, self.label_drawn((cond or {}).get("label"), len(z))], axis=-1)
        h = self.decoder(z if self.hidden else self.unfold(z).reshape(len(z), *self._map()))
        h = h.reshape(len(z), *self.shape[:-1], -1)
        h = (self.pixels(h, x) if self.pixel_layers else h).astype(jnp.float32)
        return (h, self.shared) if self.log_scale == "shared" else tuple(jnp.split(h, 2, axis=-1))

    def _map(self) -> tuple[int, int, int]:
        """(H, W, C) of the smallest feature map of the convolutional encoder and decoder."""
        channels = self.width * self.multipliers[-1]
        return (*_halved(self.shape, self.stem, self.multipliers), channels)


def _halved(shape: tuple[int, ...], stem: int, multipliers: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of images of `shape` at the bottom of the network; UserError if they do not fit."""
    factor = stem * 2 ** (len(multipliers) - 1)
    if len(shape) != 3 or shape[0] % factor or shape[1] % factor:
        raise UserError(
            f"examples of shape {shape} do not fit an autoencoder with stem={stem} and multipliers="
            f"{multipliers}: images need sides that are multiples of {factor}; resize them, or use "
            "fewer multipliers"
        )
    return shape[0] // factor, shape[1] // factor


def _dense(features: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(features, kernel_init=KERNEL_INIT, name=name)


class _Perceptron(nn.Module):
    """A perceptron, (B, D) -> (B, widths[-1])."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        for i, width in enumerate(self.widths):
            h = _dense(width, f"layer_{i}")(jax.nn.silu(h) if i else h)
        return h


class _Encoder(nn.Module):
    """The encoder of AutoencoderKL, (B, H, W, C) -> (B, H / f, W / f, features).

    Strided convolutions halve the resolution; the middle follows. For the fields see AutoencoderKL.
    """

    features: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    norm: tuple[int, float] | None
    attention: bool
    stem: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = layers.conv(self.width * self.multipliers[0], dtype=self.dtype, name="first")(
            layers.space_to_depth(x, self.stem)
        )
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                h = _residual(self, self.width * multiplier, f"down_{level}_{i}")(h)
            if level < len(self.multipliers) - 1:
                padding = (0, 1)  # below and to the right only, as in diffusers
                h = layers.conv(
                    h.shape[-1],
                    stride=2,
                    padding=padding,
                    dtype=self.dtype,
                    name=f"down_{level}_half",
                )(h)
        return _last(self, _middle(self, h), self.features)


class _Decoder(nn.Module):
    """The decoder of AutoencoderKL, (B, h, w, D) -> (B, f h, f w, features).

    After the middle, nearest neighbors and convolutions double the resolution. For the fields see
    AutoencoderKL.
    """

    features: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    norm: tuple[int, float] | None
    attention: bool
    stem: int
    dtype: str

    @nn.compact
    def __call__(self, z: Array) -> Array:
        h = layers.conv(self.width * self.multipliers[-1], dtype=self.dtype, name="first")(z)
        h = _middle(self, h)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks):
                h = _residual(self, self.width * multiplier, f"up_{level}_{i}")(h)
            if level > 0:
                h = layers.conv(h.shape[-1], dtype=self.dtype, name=f"up_{level}_double")(
                    layers.nearest(h)
                )
        return layers.depth_to_space(_last(self, h, self.features * self.stem**2), self.stem)


def _residual(net: _Encoder | _Decoder, channels: int, name: str) -> layers.ResidualBlock:
    return layers.ResidualBlock(channels, dtype=net.dtype, norm=net.norm, name=name)


def _middle(net: _Encoder | _Decoder, h: Array) -> Array:
    h = _residual(net, h.shape[-1], "middle_1")(h)
    if net.attention:
        h = layers.AttentionBlock(None, dtype=net.dtype, norm=net.norm, name="middle_attention")(h)
    return _residual(net, h.shape[-1], "middle_2")(h)


def _last(net: _Encoder | _Decoder, h: Array, features: int) -> Array:
    h = group_norm(h, "last_norm", net.norm, silu=True)
    return layers.conv(features, name="last")(h)  # float32


# The members of the family, which a config may name.
NETWORKS = (AutoencoderKL, VAE)
