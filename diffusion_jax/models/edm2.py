"""EDM2's magnitude-preserving U-Net (Karras et al. 2024).

The paper is "Analyzing and improving the training dynamics of diffusion models"; equations are its
own, and the layers are those of magnitude.py.

Forced weight normalization (eq. 66) replaces the stored weights by normalized ones before each
training step, which keeps their length, and so the effective learning rate, from drifting. It is
the projection `EDM2UNet.constrain` of all parameters, which the train step applies
(training/step.py). The averages follow the weights after the update, as in the authors' program.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond, Params
from diffusion_jax.models import attention, embeddings, layers
from diffusion_jax.models.dropout import Dropout
from diffusion_jax.models.magnitude import (
    MPFourier,
    MPLayer,
    mp_cat,
    mp_silu,
    mp_sum,
    normalized,
    unit_kernel,
)
from diffusion_jax.models.remat import product, rematerialized

# The widths of table 3; EDM2UNet(**SIZES["XS"]) with 1000 classes has 125 million parameters.
SIZES = {
    "XS": {"width": 128},
    "S": {"width": 192},
    "M": {"width": 256},
    "L": {"width": 320},
    "XL": {"width": 384},
    "XXL": {"width": 448},
}

EMBEDDINGS = ("fourier", "positional")


class MPBlock(nn.Module):
    """A block of the encoder or the decoder (figure 21), (B, H, W, C), (B, E) -> (B, H', W', D).

    Attributes:
      channels: D.
      decoder: whether it is one of the decoder, whose shortcut projects after the branch, and which
        has no pixel norm.
      resample: 'none', 'down' or 'up', before everything else.
      attention: whether self-attention follows.
      head_width: channels per attention head.
      dropout: rate before the last convolution of the branch.
      residual_balance: share of the branch.
      attention_balance: share of the attention.
      clip: bound of the results; 0 is none.
      resample_filter: see fir.py.
      double_norm: see EDM2UNet.
      impl: see attention.multi_head.
    """

    channels: int
    decoder: bool = False
    resample: str = "none"
    attention: bool = False
    head_width: int = 64
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float = 256.0
    resample_filter: tuple[int, ...] = (1, 1)
    double_norm: bool = False
    impl: str = "auto"

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool = False) -> Array:
        """Evaluates the block.

        Args:
          x: features, (B, H, W, C).
          embedding: the embedding of the condition, (B, E).
          train: whether dropout is on, which needs an rng of the name 'dropout'.

        Returns:
          (B, H', W', D), whose height and width are halved, doubled or kept by `resample`.
        """
        x = layers.resample(x, self.resample, self.resample_filter)
        project = x.shape[-1] != self.channels
        if not self.decoder:
            x = MPLayer(self.channels, name="shortcut")(x) if project else x
            x = normalized(x, -1)
        h = product(MPLayer(self.channels, 3, name="conv_1")(mp_silu(x)))
        h = Dropout(self.dropout)(mp_silu(self._modulate(h, embedding)), train)
        h = MPLayer(self.channels, 3, name="conv_2")(h)
        if self.decoder and project:
            x = MPLayer(self.channels, name="shortcut")(x)
        x = mp_sum(x, h, self.residual_balance)
        if self.attention:
            x = mp_sum(x, self._attend(x), self.attention_balance)
        return jnp.clip(x, -self.clip, self.clip) if self.clip else x

    def _modulate(self, h: Array, embedding: Array) -> Array:
        if not self.double_norm:
            gain = self.param("embedding_gain", nn.initializers.zeros_init(), (), jnp.float32)
            scale = 1 + MPLayer(self.channels, name="embedding")(embedding, gain)
            return h * scale[:, None, None, :].astype(h.dtype)
        both = MPLayer(2 * self.channels, name="embedding")(embedding)[:, None, None, :]
        scale, shift = (normalized(part, -1).astype(h.dtype) for part in jnp.split(both, 2, -1))
        return normalized(h, -1) * scale + shift

    def _attend(self, x: Array) -> Array:
        b, height, width, c = x.shape
        heads = layers.count_heads(c, self.head_width)
        qkv = product(MPLayer(3 * c, name="qkv")(x))
        qkv = normalized(qkv.reshape(b, height * width, 3, heads, c // heads), -1)
        h = attention.self_attention(qkv, self.impl).reshape(b, height, width, c)
        return MPLayer(c, name="project")(h)


class EDM2UNet(nn.Module):
    """EDM2's U-Net F(x, c_noise, cond): (B, H, W, C), (B,), dict -> (B, H, W, C) float32.

    The output is exactly 0 at initialization. H and W must be multiples of 2^(levels - 1). The
    calling convention is that of unet.UNet. The defaults are the size S of the paper; SIZES has
    the others.

    Attributes:
      num_classes: 0 is an unconditional network, which ignores labels; the null label is the vector
        zero.
      vector: size of cond['vector'], numbers of about unit variance of which two layers are a part
        of the embedding, as the class is; 0 is none. Zeros are "nothing is known".
      width: channels of the first level; see SIZES.
      multipliers: level i has width * multipliers[i] channels, and half the resolution of the level
        before.
      blocks: blocks per level of the encoder; the decoder has one more per level.
      attention: the heights of the feature maps with attention after each block. The middle always
        has it.
      head_width: channels per attention head.
      dropout: rate inside a block; 0.1 for the larger networks of the paper.
      noise_multiplier: the features of the noise level are width times this; None is the first of
        `multipliers`.
      embedding_multiplier: the embedding is width times this; None is the largest of `multipliers`.
      label_balance: share of the class, and of the vector, in the embedding.
      concat_balance: share of the encoder's feature maps in the decoder.
      residual_balance: share of the branch of a block.
      attention_balance: share of the attention of a block.
      clip: bound of the activations after each block; 0 is none.
      resample_filter: the filter of the resampling; see fir.py.
      noise_embedding: 'fourier', random Fourier features of the noise level, or 'positional', those
        of embeddings.sinusoidal, whose derivative with respect to the level is small (Lu & Song
        2025, section 4.1).
      double_norm: the embedding enters each block by adaptive double normalization, norm(h)
        pnorm(scale) + pnorm(shift) with pnorm the pixel norm, which is also the norm here (Lu &
        Song 2025, section 4.1 and tables 4 and 5), instead of the paper's h (1 + gain scale).
      uncertainty: width of the features of the learned uncertainty u(sigma) (eq. 21), which
        objectives such as uncertainty.edm2 train and samplers do not use; the paper has 128, and
        0 is none.
      second_time: the network also receives cond['to'], the time at which a move ends (MeanFlow).
      dtype: one of layers.DTYPES, for feature maps; the embedding and the norms of weights are
        float32.
      remat: see remat.rematerialized.
      attention_impl: see attention.multi_head.
      identity_attention: names of blocks whose attention map is the identity, for
        perturbed-attention guidance: 'middle_1', 'down_2_0', ....
      skipped: names of blocks whose attention is left out, for skip-layer guidance.
    """

    num_classes: int = 0
    vector: int = 0
    width: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    head_width: int = 64
    dropout: float = 0.0
    noise_multiplier: int | None = None
    embedding_multiplier: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float = 256.0
    resample_filter: tuple[int, ...] = (1, 1)
    noise_embedding: str = "fourier"
    double_norm: bool = False
    uncertainty: int = 0
    second_time: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_impl: str = "auto"
    identity_attention: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Array,
        c_noise: Array,
        cond: Cond = None,
        train: bool = False,
        log_variance: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Evaluates the network.

        Args:
          x: scaled noised images or latents, (B, H, W, C).
          c_noise: the noise level, scalar or (B,).
          cond: None, or a dict with 'label' (B,), 'vector' (B, vector) and, with second_time, 'to'
            (B,).
          train: turns dropout on; then rngs={'dropout': key} is needed.
          log_variance: returns the learned uncertainty as well.

        Returns:
          F, (B, H, W, C) float32; with log_variance (F, {'log_variance': u}), where u (B,) is the
          logarithm of the variance of F's error.

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        self._check(x, log_variance)
        c_noise = jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), x.shape[:1])
        condition = _Condition(
            self.width * (self.noise_multiplier or self.multipliers[0]),
            self.width * (self.embedding_multiplier or max(self.multipliers)),
            self.num_classes,
            self.label_balance,
            self.second_time,
            self.vector,
            self.noise_embedding,
            name="condition",
        )
        embedding, channels = condition(c_noise, cond or {}), x.shape[-1]
        ones = jnp.ones_like(x[..., :1])  # in the place of a bias
        h, skips = self._down(jnp.concatenate([x, ones], axis=-1), embedding, train)
        h = self._block(h, embedding, train, h.shape[-1], "middle_1", decoder=True, attends=True)
        h = self._block(h, embedding, train, h.shape[-1], "middle_2", decoder=True)
        h = self._up(h, skips, embedding, train)
        gain = self.param("last_gain", nn.initializers.zeros_init(), (), jnp.float32)
        h = MPLayer(channels, 3, name="last")(h.astype(jnp.float32), gain)
        if not self.uncertainty:
            return h
        features = _features(self.noise_embedding, c_noise, self.uncertainty, "uncertainty_noise")
        u = MPLayer(1, name="uncertainty_last")(features)[:, 0]
        return (h, {"log_variance": u}) if log_variance else h

    @nn.nowrap
    def constrain(self, params: Params) -> Params:
        """Forced weight normalization (eq. 66): every kernel is replaced by its unit kernel.

        The train step applies it to the parameters before each step.

        Args:
          params: the parameters of the network.

        Returns:
          The same tree; gains, frequencies and phases are as they were.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: unit_kernel(leaf) if path[-1].key == "kernel" else leaf, params
        )

    @nn.nowrap
    def heights(self, height: int) -> tuple[int, ...]:
        """The heights of the feature maps, which `attention` may name.

        Args:
          height: that of an example.
        """
        return layers.level_heights(height, len(self.multipliers))

    def _block(
        self,
        h: Array,
        embedding: Array,
        train: bool,
        channels: int,
        name: str,
        *,
        decoder: bool = False,
        attends: bool = False,
        resample: str = "none",
    ) -> Array:
        block = rematerialized(MPBlock, self.remat, static_argnums=(3,))(
            channels,
            decoder,
            resample,
            attention=attends and name not in self.skipped,
            head_width=self.head_width,
            dropout=self.dropout,
            residual_balance=self.residual_balance,
            attention_balance=self.attention_balance,
            clip=self.clip,
            resample_filter=self.resample_filter,
            double_norm=self.double_norm,
            impl=attention.IDENTITY if name in self.identity_attention else self.attention_impl,
            name=name,
        )
        return block(h, embedding, train)

    def _down(self, x: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """The encoder: the smallest feature map, and every map that the decoder receives again."""
        first = self.width * self.multipliers[0]
        h = MPLayer(first, 3, name="first")(x.astype(self.dtype))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                name = f"down_{level}_half"
                h = self._block(h, embedding, train, h.shape[-1], name, resample="down")
                skips.append(h)
            for i in range(self.blocks):
                channels, attends = self.width * multiplier, h.shape[1] in self.attention
                name = f"down_{level}_{i}"
                h = self._block(h, embedding, train, channels, name, attends=attends)
                skips.append(h)
        return h, skips

    def _up(self, h: Array, skips: list[Array], embedding: Array, train: bool) -> Array:
        """The decoder, which takes the feature maps of the encoder in reverse order."""
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            if level < len(self.multipliers) - 1:
                name = f"up_{level}_double"
                h = self._block(h, embedding, train, h.shape[-1], name, decoder=True, resample="up")
            for i in range(self.blocks + 1):
                channels, attends = self.width * multiplier, h.shape[1] in self.attention
                h = mp_cat(h, skips.pop(), self.concat_balance)
                name = f"up_{level}_{i}"
                h = self._block(h, embedding, train, channels, name, decoder=True, attends=attends)
        return h

    def _check(self, x: Array, log_variance: bool) -> None:
        """Checks options and shapes while tracing."""
        if self.dtype not in layers.DTYPES:
            raise unknown("dtype", self.dtype, layers.DTYPES)
        if self.noise_embedding not in EMBEDDINGS:
            raise unknown("noise_embedding", self.noise_embedding, EMBEDDINGS)
        if x.ndim != 4:
            raise UserError(
                f"EDM2's U-Net takes images (B, H, W, C), not shape {x.shape}; use the MLP for "
                "points"
            )
        multiple = 2 ** (len(self.multipliers) - 1)
        if x.shape[1] % multiple or x.shape[2] % multiple:
            raise UserError(
                f"images of {x.shape[1]} x {x.shape[2]} do not fit EDM2's U-Net: "
                f"multipliers={self.multipliers} need multiples of {multiple}; resize the images, "
                "or use fewer multipliers"
            )
        if log_variance and not self.uncertainty:
            raise UserError(
                "this network has learned no uncertainty: set config.model.uncertainty=128"
            )


class _Condition(nn.Module):
    """The embedding of noise level and class, (B,), dict -> (B, width) of unit magnitude."""

    features: int
    width: int
    num_classes: int
    label_balance: float
    second_time: bool
    vector: int
    noise_embedding: str

    @nn.compact
    def __call__(self, c_noise: Array, cond: dict) -> Array:
        batch = len(c_noise)
        features = _features(self.noise_embedding, c_noise, self.features, "noise_features")
        h = MPLayer(self.width, name="noise")(features)
        if self.second_time:
            to = jnp.asarray(cond.get("to", jnp.zeros(batch)), jnp.float32)
            gain = self.param("to_gain", nn.initializers.zeros_init(), (), jnp.float32)
            features = 2**0.5 * embeddings.smooth(to, self.features)
            h = h + MPLayer(self.width, name="to")(features, gain)
        if self.num_classes:
            label = embeddings.one_hot(cond.get("label"), self.num_classes, batch)
            label = MPLayer(self.width, name="label")(label * self.num_classes**0.5)
            h = mp_sum(h, label, self.label_balance)
        if self.vector:
            vector = embeddings.vector_of(cond, self.vector, batch)
            vector = mp_silu(MPLayer(self.width, name="vector_1")(vector))
            h = mp_sum(h, MPLayer(self.width, name="vector_2")(vector), self.label_balance)
        return mp_silu(h)


def _features(kind: str, c_noise: Array, features: int, name: str) -> Array:
    """Features of unit magnitude of the noise level, (B,) -> (B, features), in a compact method."""
    if kind == "fourier":
        return MPFourier(features, name=name)(c_noise)
    return 2**0.5 * embeddings.sinusoidal(c_noise, features)


# The members of the family, which a config may name.
NETWORKS = (EDM2UNet,)
