"""Networks that turn an image into a distribution over latents, and a latent into a distribution over images.

All have one interface, which is all that objectives/autoencoding.py knows of them:
    encode(x, cond, train) -> (mean, log_variance), both (B, *latent_shape)                 q(z | x), a diagonal Gaussian
    decode(z, cond, x, train) -> (mean (B, H, W, C), log_scale, broadcastable to it)        p(x | z), whose kind the objective chooses
x in decode is the image itself, for decoders that predict a pixel from those before it. float32 outside, images in [-1, 1].
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError
from diffusion_jax.models import layers
from diffusion_jax.types import Array, Cond

LOG_VARIANCE = (-30.0, 20.0)  # as latent diffusion's code clips it


class AutoencoderKL(nn.Module):
    """The autoencoder of latent diffusion (Rombach et al. 2022, appendix G), in the layout of diffusers' class of that name.

    A state dict of theirs becomes our parameters by renaming and transposing, for any block_out_channels with a common divisor
    `width`. log_scale is 0: the image is the decoder's mean. Labels are not looked at.

    shape: (H, W, C) of the images. Others are taken, too, as the network is convolutional, but C is the decoder's.
    latent_channels: 4 in Stable Diffusion 1 and 2, 16 in 3.
    width, multipliers: level i has width * multipliers[i] channels at half the resolution of the level before.
    blocks: residual blocks per level of the encoder; the decoder has one more.
    norm: (groups, epsilon) of every group norm; None: see layers.group_norm.
    attention: one head over the pixels in the middle of both halves.
    quant: the 1x1 convolutions on both sides of the latent.
    stem: 2 packs each 2 x 2 block of pixels into channels first, and unpacks it last: a quarter of the work (not in diffusers).
    dtype: of convolutions and attention.
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

    def setup(self):
        options = dict(multipliers=self.multipliers, width=self.width, norm=self.norm, attention=self.attention, dtype=self.dtype)
        self.encoder = Encoder(2 * self.latent_channels, blocks=self.blocks, stem=self.stem, **options)
        self.decoder = Decoder(self.shape[-1], blocks=self.blocks + 1, stem=self.stem, **options)
        if self.quant:
            self.quant_conv = layers.conv(2 * self.latent_channels, 1, name="quant_conv")
            self.post_quant_conv = layers.conv(self.latent_channels, 1, name="post_quant_conv")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the latents of images of `shape`. UserError if these cannot be halved often enough."""
        height, width, _ = self.shape
        factor = self.stem * 2 ** (len(self.multipliers) - 1)
        if height % factor or width % factor:
            raise UserError(f"images of {height} x {width} do not fit an autoencoder with stem={self.stem} and multipliers="
                            f"{self.multipliers}, which need multiples of {factor}; resize the images, or use fewer multipliers")  # fmt: skip
        return height // factor, width // factor, self.latent_channels

    def __call__(self, x: Array, cond: Cond = None, train: bool = False) -> tuple[Array, Array]:
        """The reconstruction from the latent's mean, as `decode` gives it."""
        return self.decode(self.encode(x, cond, train)[0], cond, x, train)

    def encode(self, x: Array, cond: Cond = None, train: bool = False) -> tuple[Array, Array]:
        """(mean, log_variance) of the latent, (B, H / f, W / f, latent_channels), f = stem 2^(levels - 1)."""
        h = self.encoder(x)
        h = self.quant_conv(h) if self.quant else h
        mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, z: Array, cond: Cond = None, x: Array | None = None, train: bool = False) -> tuple[Array, Array]:
        """(image (B, H, W, C), 0)."""
        h = self.post_quant_conv(z) if self.quant else z
        return self.decoder(h).astype(jnp.float32), jnp.zeros(())


class Encoder(nn.Module):
    """(B, H, W, C) -> (B, H / f, W / f, features): down by strided convolutions, and the middle. Fields: AutoencoderKL."""

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
        h = layers.conv(self.width * self.multipliers[0], dtype=self.dtype, name="first")(layers.space_to_depth(x, self.stem))
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                h = _residual(self, self.width * multiplier, f"down_{level}_{i}")(h)
            if level < len(self.multipliers) - 1:
                padding = ((0, 1), (0, 1))  # below and to the right only, as theirs
                h = layers.conv(h.shape[-1], stride=2, padding=padding, dtype=self.dtype, name=f"down_{level}_half")(h)
        return _last(self, _middle(self, h), self.features)


class Decoder(nn.Module):
    """(B, h, w, D) -> (B, f h, f w, features): the middle, and up by nearest neighbours and convolutions. Fields: AutoencoderKL."""

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
                h = layers.conv(h.shape[-1], dtype=self.dtype, name=f"up_{level}_double")(layers.nearest(h))
        return layers.depth_to_space(_last(self, h, self.features * self.stem**2), self.stem)


def _residual(net: Encoder | Decoder, channels: int, name: str) -> layers.ResidualBlock:
    return layers.ResidualBlock(channels, dtype=net.dtype, norm=net.norm, name=name)


def _middle(net: Encoder | Decoder, h: Array) -> Array:
    h = _residual(net, h.shape[-1], "middle_1")(h)
    if net.attention:
        h = layers.AttentionBlock(None, dtype=net.dtype, norm=net.norm, name="middle_attention")(h)
    return _residual(net, h.shape[-1], "middle_2")(h)


def _last(net: Encoder | Decoder, h: Array, features: int) -> Array:
    h = jax.nn.silu(layers.group_norm(h, "last_norm", net.norm))
    return layers.conv(features, name="last")(h)  # float32
