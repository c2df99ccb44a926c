"""NCSN++ and DDPM++, the U-Nets of score-based SDEs (Song et al. 2021, appendix H), in EDM's form.

EDM (Karras et al. 2022, table 7) trains both with the settings of PRESETS on 32x32 images. They
differ in the embedding of the noise level, in the filter of the resampling, and in the progressive
input:

    none       the encoder sees the image at its full resolution alone
    skip       h + conv_1x1(x),     x the image, halved at each level
    residual   p = (h + down(conv_3x3(p))) / sqrt(2), and h = p,    p = x at the first level

A progressive output is the sum of an image of each level of the decoder, doubled to the next.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import embeddings, fir, layers
from diffusion_jax.models.attention import IDENTITY
from diffusion_jax.models.dropout import rate_at
from diffusion_jax.models.embeddings import KERNEL_INIT
from diffusion_jax.models.normalization import group_norm
from diffusion_jax.models.remat import rematerialized
from diffusion_jax.models.uncertainty import with_log_variance

# Their differences in table 7 of Karras et al. 2022; NCSNpp(**PRESETS["ncsnpp"]) is NCSN++.
PRESETS = {
    "ddpmpp": {},
    "ncsnpp": {
        "noise_embedding": "fourier",
        "noise_multiplier": 2,
        "progressive_input": "residual",
        "resample_filter": (1, 3, 3, 1),
    },
}
INPUTS, OUTPUTS = ("none", "skip", "residual"), ("none", "skip")
EMBEDDINGS = ("positional", "fourier")


class NCSNpp(nn.Module):
    """NCSN++ and DDPM++, F(x, c_noise, cond): (B, H, W, C), (B,), dict -> (B, H, W, C) float32.

    The defaults are DDPM++ as EDM trains it on CIFAR-10. The output is exactly 0 at initialization.
    H and W must be multiples of 2^(levels - 1). Attention has one head. The calling convention is
    that of unet.UNet.

    Attributes:
      num_classes: 0 is an unconditional network, which ignores labels. Otherwise the label is added
        to the features of the noise level; the null label adds the bias alone.
      vector: size of cond['vector'], whose MLP is added there, too (see
        embeddings.ConditionEmbedding); 0 is none.
      augment: size of the augmentation labels cond['augment'], (B, augment); EDM has 9, 0 is none.
        Examples without them have zeros.
      width: channels of the first convolution.
      multipliers: level i has width * multipliers[i] channels, and half the resolution of the level
        before.
      blocks: residual blocks per level of the encoder; the decoder has one more per level.
      attention: the heights of the feature maps with attention, after each residual block of the
        encoder and the last one of the decoder's level. The middle always has it.
      dropout: rate between the two convolutions of a residual block; EDM 0.13 on CIFAR-10.
      dropout_height: the greatest height of the feature maps with dropout; 0 is all.
      noise_embedding: 'positional' (DDPM++) or 'fourier', with random frequencies that are
        parameters without a gradient (NCSN++). Both take c_noise itself.
      fourier_scale: standard deviation of these frequencies at initialization: NCSN++ 16; 0.02 for
        consistency models (Song & Dhariwal 2024, section 3.1).
      noise_multiplier: the features of the noise level are width times this; NCSN++ 2.
      progressive_input: 'none', 'skip' or 'residual' (NCSN++); see the module.
      progressive_output: 'none' or 'skip'; see the module.
      resample_filter: the filter of all resampling, (1, 1) or (1, 3, 3, 1); see fir.py.
      skip_scale: factor on each sum of a block and its shortcut.
      double_norm: the embedding enters each residual block by adaptive double normalization (Lu &
        Song 2025, section 4.1), instead of being added before the second norm; see
        layers.ResidualBlock.
      learn_variance: the output is (B, H, W, 2C), the second C channels for the variance (Nichol &
        Dhariwal 2021, eq. 15).
      second_time: the network also receives cond['to'], the time at which a move ends (MeanFlow).
      uncertainty: size of the features of the learned uncertainty u(c_noise), by which objectives
        weight noise levels (objectives/uncertainty.py); the papers have 128, 0 is none.
      dtype: one of layers.DTYPES, for convolutions and attention; see unet.UNet.
      remat: see remat.rematerialized.
      attention_impl: see attention.multi_head.
      identity_attention: names of self-attention blocks whose attention map is the identity, for
        perturbed-attention guidance: 'middle_attention', 'down_1_0_attention', ....
      skipped: names of self-attention blocks that are left out, for skip-layer guidance.
    """

    num_classes: int = 0
    vector: int = 0
    augment: int = 0
    width: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.0
    dropout_height: int = 0
    noise_embedding: str = "positional"
    fourier_scale: float = 16.0
    noise_multiplier: int = 1
    progressive_input: str = "none"
    progressive_output: str = "none"
    resample_filter: tuple[int, ...] = (1, 1)
    skip_scale: float = 0.5**0.5
    double_norm: bool = False
    learn_variance: bool = False
    second_time: bool = False
    uncertainty: int = 0
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
          x: scaled noised images, (B, H, W, C).
          c_noise: the noise level, scalar or (B,).
          cond: None, or a dict with 'label' (B,), 'vector' (B, vector), 'augment' (B, augment) and,
            with second_time, 'to' (B,), all optional.
          train: turns dropout on; then rngs={'dropout': key} is needed.
          log_variance: returns the learned uncertainty as well.

        Returns:
          F, (B, H, W, C) or (B, H, W, 2C) float32; with log_variance (F, {'log_variance': u (B,)}).

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        self._check(x)
        condition = _Condition(
            self.width * self.noise_multiplier,
            4 * self.width,
            self.num_classes,
            self.augment,
            self.noise_embedding,
            self.fourier_scale,
            self.second_time,
            self.vector,
            name="condition",
        )
        embedding = condition(c_noise, cond or {}, x.shape[0])
        h, skips = self._down(x, embedding, train)
        h = self._residual(h, embedding, train, h.shape[-1], "middle_1")
        h = self._attention(h, "middle_attention")
        h = self._residual(h, embedding, train, h.shape[-1], "middle_2")
        channels = x.shape[-1] * (2 if self.learn_variance else 1)
        h = self._up(h, skips, embedding, train, channels)
        return with_log_variance(h, c_noise, self.uncertainty, log_variance)

    def _residual(
        self,
        h: Array,
        embedding: Array,
        train: bool,
        channels: int,
        name: str,
        resample: str = "none",
    ) -> Array:
        block = rematerialized(layers.ResidualBlock, self.remat, static_argnums=(3,))(
            channels,
            resample,
            scale_shift=False,
            dropout=rate_at(h, resample, self.dropout, self.dropout_height),
            skip_scale=self.skip_scale,
            dtype=self.dtype,
            project=resample != "none",
            resample_filter=self.resample_filter,
            double_norm=self.double_norm,
            name=name,
        )
        return block(h, embedding, train)

    @nn.nowrap
    def heights(self, height: int) -> tuple[int, ...]:
        """The heights of the feature maps, which `attention` and `dropout_height` may name.

        Args:
          height: that of an example.
        """
        return layers.level_heights(height, len(self.multipliers))

    def _attention(self, h: Array, name: str) -> Array:
        if name in self.skipped:
            return h
        impl = IDENTITY if name in self.identity_attention else self.attention_impl
        block = rematerialized(layers.AttentionBlock, self.remat)
        options = self.skip_scale, impl, self.dtype
        return block(None, *options, name=name)(h)

    def _down(self, x: Array, embedding: Array, train: bool) -> tuple[Array, list[Array]]:
        """The encoder: the smallest feature map, and every map that the decoder receives again."""
        h = layers.conv(self.width, dtype=self.dtype, name="first")(x)
        skips, pyramid = [h], x
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                name = f"down_{level}_half"
                h = self._residual(h, embedding, train, h.shape[-1], name, "down")
                h, pyramid = self._with_input(h, pyramid, f"input_{level}")
                skips.append(h)
            for i in range(self.blocks):
                name = f"down_{level}_{i}"
                h = self._residual(h, embedding, train, self.width * multiplier, name)
                if h.shape[1] in self.attention:
                    h = self._attention(h, f"{name}_attention")
                skips.append(h)
        return h, skips

    def _with_input(self, h: Array, pyramid: Array, name: str) -> tuple[Array, Array]:
        """The feature map with the progressive input, and what the next level makes its own of."""
        if self.progressive_input == "skip":
            pyramid = layers.resample(pyramid, "down", self.resample_filter)
            own = layers.conv(h.shape[-1], 1, dtype=self.dtype, name=name)(pyramid)
            return h + own, pyramid
        if self.progressive_input == "residual":
            # the filter reads the results of the convolution beyond the border
            side = len(self.resample_filter) // 2
            conv = layers.conv(h.shape[-1], padding=(side, side), dtype=self.dtype, name=name)
            wide = conv(pyramid)
            own = fir.filtered(wide, "down", self.resample_filter, pad=False)
            h = (h + own) * 0.5**0.5
            return h, h
        return h, pyramid

    def _up(
        self, h: Array, skips: list[Array], embedding: Array, train: bool, channels: int
    ) -> Array:
        """The decoder, which takes the feature maps of the encoder in reverse order."""
        image = None
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            if level < len(self.multipliers) - 1:
                name = f"up_{level}_double"
                h = self._residual(h, embedding, train, h.shape[-1], name, "up")
            for i in range(self.blocks + 1):
                name = f"up_{level}_{i}"
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._residual(h, embedding, train, self.width * multiplier, name)
            if h.shape[1] in self.attention:
                h = self._attention(h, f"{name}_attention")
            if level == 0 or self.progressive_output == "skip":
                name = "last" if level == 0 else f"output_{level}"
                own = group_norm(h, f"{name}_norm", silu=True)
                own = layers.conv(channels, zero=True, name=name)(own)  # float32
                if image is not None:
                    own = own + layers.resample(image, "up", self.resample_filter)
                image = own
        return image.astype(jnp.float32)

    def _check(self, x: Array) -> None:
        """Checks options and shapes while tracing."""
        for key, value, known in (
            ("progressive_input", self.progressive_input, INPUTS),
            ("progressive_output", self.progressive_output, OUTPUTS),
            ("noise embedding", self.noise_embedding, EMBEDDINGS),
            ("dtype", self.dtype, layers.DTYPES),
        ):
            if value not in known:
                raise unknown(key, value, known)
        if x.ndim != 4:
            raise UserError(
                f"NCSN++ takes images (B, H, W, C), not shape {x.shape}; use the MLP for points"
            )
        height, width = x.shape[1:3]
        multiple = 2 ** (len(self.multipliers) - 1)
        if height % multiple or width % multiple:
            raise UserError(
                f"images of {height} x {width} do not fit NCSN++: multipliers={self.multipliers} "
                f"need multiples of {multiple}; resize the images, or use fewer multipliers"
            )


class _Condition(nn.Module):
    """The vector of a condition, (B,), dict, B -> (B, width): label and augmentation come first.

    MLP(features of c_noise + linear maps of label and augmentation + MLP(vector))

    The blocks apply the last nonlinearity.
    """

    features: int
    width: int
    num_classes: int
    augment: int
    noise_embedding: str
    fourier_scale: float
    second_time: bool
    vector: int

    @nn.compact
    def __call__(self, c_noise: Array, cond: dict, batch: int) -> Array:
        c_noise = jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), (batch,))
        if self.noise_embedding == "fourier":
            h = _Fourier(self.features, self.fourier_scale, name="features")(c_noise)
        else:
            h = embeddings.sinusoidal(c_noise, self.features)
        if self.num_classes:
            label = embeddings.one_hot(cond.get("label"), self.num_classes, batch)
            h = h + self._dense(self.features, "label")(label * self.num_classes**0.5)
        if self.vector:
            vector = embeddings.vector_of(cond, self.vector, batch)
            vector = jax.nn.silu(self._dense(self.features, "vector_1")(vector))
            h = h + self._dense(self.features, "vector_2")(vector)
        if self.augment:
            h = h + embeddings.augmentation(cond, self.augment, batch, self.features)
        if self.second_time:
            to = jnp.asarray(cond.get("to", jnp.zeros(batch)), jnp.float32)
            zeros = nn.initializers.zeros_init()
            linear = nn.Dense(self.features, use_bias=False, kernel_init=zeros, name="to")
            h = h + linear(embeddings.smooth(to, self.features))
        h = jax.nn.silu(self._dense(self.width, "noise_1")(h))
        return self._dense(self.width, "noise_2")(h)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, kernel_init=KERNEL_INIT, name=name)


class _Fourier(nn.Module):
    """Random Fourier features (Song et al. 2021, appendix H).

    The frequencies are a parameter without a gradient, so that a file can bring them.
    """

    features: int
    scale: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.normal(self.scale)
        frequencies = self.param("frequencies", init, (self.features // 2,), jnp.float32)
        angle = 2 * np.pi * x[:, None] * jax.lax.stop_gradient(frequencies)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


# The members of the family, which a config may name.
NETWORKS = (NCSNpp,)
