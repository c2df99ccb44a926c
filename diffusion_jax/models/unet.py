"""The U-Net, with the options of DDPM (Ho et al. 2020) and ADM (Dhariwal & Nichol 2021)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import layers
from diffusion_jax.models.attention import IDENTITY
from diffusion_jax.models.dropout import rate_at
from diffusion_jax.models.embeddings import ConditionEmbedding, concatenated, input_waves
from diffusion_jax.models.normalization import group_norm
from diffusion_jax.models.remat import rematerialized
from diffusion_jax.models.text import Text, TextFeatures
from diffusion_jax.models.uncertainty import with_log_variance

UPDOWN = ("conv", "conv_centred", "resblock", "resblock_projected")


class UNet(nn.Module):
    """The U-Net F(x, c_noise, cond): (B, N_1, ..., N_d, C), (B,), dict -> the same shape, float32.

    x is of series (d = 1), images (d = 2) or volumes (d = 3), whose axes are treated alike. The
    output is exactly 0 at initialization. DDPM's options are in its appendix B, ADM's in its
    section 3. Each N_i must be a multiple of stem * 2^(levels - 1); C is x's own.

    Attributes:
      num_classes: 0 is an unconditional network, which ignores labels; otherwise there is an
        embedding for each class and one for "no class".
      text: reads captions out of cond (models/text.py). Cross-attention to their states follows
        each self-attention, and their pooled vector is part of the embedding of the condition.
        None: captions are ignored.
      vector: size of cond['vector'], numbers that are part of the embedding of the condition (see
        embeddings.ConditionEmbedding); 0 is none.
      stem: 2 packs each 2 x 2 block of pixels into channels before the first convolution and
        unpacks it after the last (Shi et al. 2016): a quarter of the work at some loss of detail
        (with d axes, blocks of 2^d). 1 is none.
      width: channels of the first level; DDPM 128, ADM 192 to 256.
      multipliers: level i has width * multipliers[i] channels, and half the resolution of the level
        before.
      blocks: residual blocks per level of the encoder; the decoder has one more per level.
      attention: the heights N_1 of the feature maps (after the stem) with attention after each
        residual block; DDPM (16,), ADM (32, 16, 8). The middle always has it. A height that no
        level has is ignored, so that one tuple serves several image sizes.
      decoder_attention_once: the decoder has attention only after the last residual block of such a
        level (DDPM++, Song et al. 2021), instead of after each.
      head_width: channels per attention head, ADM 64; None is DDPM's single head.
      heads: number of attention heads on all levels, improved DDPM 4, in place of head_width; 0 is
        what head_width says.
      dropout: rate between the two convolutions of a residual block; DDPM on CIFAR-10 0.1.
      dropout_height: the greatest height N_1 of the feature maps with dropout, of large images the
        lower levels alone (simple diffusion 16, Hoogeboom et al. 2023); 0 is all.
      scale_shift: the embedding scales and shifts the second norm of a block (ADM), or is added
        before it (DDPM).
      updown: 'conv' halves by a strided convolution and doubles by nearest neighbor and a
        convolution (DDPM, whose strided convolution is padded on the right and below;
        'conv_centred' pads all around); 'resblock' does both inside further residual blocks (ADM,
        after BigGAN); in 'resblock_projected' their shortcuts are 1x1 convolutions (DDPM++, Song et
        al. 2021).
      skip_scale: factor on each sum of a block and its shortcut: 1, or 1/sqrt(2) (NCSN++, Song et
        al. 2021, appendix H; ADM).
      norm: (groups, epsilon) of every group norm, for networks trained elsewhere; None is about
        min(32, channels / 4) and 1e-6, and 0 groups are that number with another epsilon.
      learn_variance: the output has 2C channels, the second C for the variance (Nichol & Dhariwal
        2021, eq. 15).
      extra_channels: channels of cond['concat'], which the first convolution receives besides x
        (SR3, Saharia et al. 2021).
      input_fourier: exponents n of the waves sin(2^n pi x) and cos(2^n pi x) that the first
        convolution receives besides x, VDM (7, 8) for fine detail of 8-bit images (Kingma et al.
        2021, appendix C); () is none.
      augment: size of the augmentation labels cond['augment'], (B, augment), which EDM adds to the
        features of the noise level (Karras et al. 2022, appendix F.2); 0 is none, and examples
        without them have zeros.
      noise_embedding: 'sinusoidal' in 1000 c_noise (DDPM), 'adm' in 1000 c_noise or, as in EDM,
        'adm_plain' in c_noise, 'fourier' with random frequencies (NCSN++), or 'smooth' (sCM).
      second_time: the network also receives cond['to'], the time at which a move ends (MeanFlow).
      uncertainty: size of the features of the learned uncertainty u(c_noise), by which objectives
        weight noise levels (objectives/uncertainty.py); the papers have 128, 0 is none.
      dtype: one of layers.DTYPES, for convolutions and attention. Parameters, norms, softmax,
        embedding, last convolution and output are float32.
      remat: what is kept for the backward pass: 'none' (all activations), 'block' (none inside
        blocks: the least memory, a third more work), 'dots' (results of convolutions and products),
        'offload' (those, in the host's memory).
      attention_impl: 'auto', 'blocked', 'fused' or 'plain', see attention.multi_head.
      identity_attention: names of self-attention blocks whose attention map is the identity, for
        perturbed-attention guidance (Ahn et al. 2024); parameters are not concerned.
      skipped: names of self-attention blocks that are left out, for skip-layer guidance.
    """

    num_classes: int = 0
    text: Text | None = None
    vector: int = 0
    stem: int = 1
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    decoder_attention_once: bool = False
    head_width: int | None = 64
    heads: int = 0
    dropout: float = 0.0
    dropout_height: int = 0
    scale_shift: bool = True
    updown: str = "conv"
    skip_scale: float = 1.0
    norm: tuple[int, float] | None = None
    learn_variance: bool = False
    extra_channels: int = 0
    input_fourier: tuple[int, ...] = ()
    augment: int = 0
    noise_features: int = 0
    noise_embedding: str = "sinusoidal"
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
          x: scaled noised samples, (B, N_1, ..., N_d, C).
          c_noise: the noise level, scalar or (B,), in about [0, 1] or [-2, 2].
          cond: None, or a dict with 'label' (B,) integers, where num_classes (and no label at all)
            means "no class", 'concat' (B, N_1, ..., N_d, extra_channels), 'vector' (B, vector),
            with second_time 'to' (B,), and the entries that `text` reads.
          train: turns dropout on; then rngs={'dropout': key} is needed.
          log_variance: returns the learned uncertainty as well.

        Returns:
          F, (B, N_1, ..., N_d, C or 2C) float32; with log_variance (F, {'log_variance': u (B,)}).

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        cond = cond or {}
        self._check(x)
        channels, axes = x.shape[-1] * (2 if self.learn_variance else 1), x.ndim - 2
        features = self.noise_features or self.width
        condition = ConditionEmbedding(
            features,
            4 * features,
            self.num_classes,
            self.noise_embedding,
            second_time=self.second_time,
            augment=self.augment,
            vector=self.vector,
            name="condition",
        )
        text = self.text(cond, x.shape[0]) if self.text else None
        embedding = condition(c_noise, cond, x.shape[0], text and text.pooled)
        waves = input_waves(x, self.input_fourier)
        x = jnp.concatenate([concatenated(x, cond, self.extra_channels), *waves], axis=-1)
        h = layers.conv(self.width, axes=axes, dtype=self.dtype, name="first")(
            layers.space_to_depth(x, self.stem)
        )
        h, skips = self._down(h, embedding, text, train)
        h = self._residual(h, embedding, train, h.shape[-1], "middle_1")
        h = self._attention(h, text, "middle_attention")
        h = self._residual(h, embedding, train, h.shape[-1], "middle_2")
        h = self._up(h, skips, embedding, text, train)
        h = group_norm(h, "last_norm", self.norm, silu=True)
        last = layers.conv(channels * self.stem**axes, axes=axes, zero=True, name="last")
        h = last(h)  # float32
        h = layers.depth_to_space(h, self.stem).astype(jnp.float32)
        return with_log_variance(h, c_noise, self.uncertainty, log_variance)

    @nn.nowrap
    def heights(self, height: int) -> tuple[int, ...]:
        """The heights of the feature maps, which `attention` and `dropout_height` may name.

        Args:
          height: that of an example.
        """
        return layers.level_heights(height // self.stem, len(self.multipliers))

    def _residual(
        self,
        h: Array,
        embedding: Array,
        train: bool,
        channels: int,
        name: str,
        resample: str = "none",
    ) -> Array:
        block = rematerialized(layers.ResidualBlock, self.remat, static_argnums=(3,))
        dropout = rate_at(h, resample, self.dropout, self.dropout_height)
        options = self.scale_shift, dropout, self.skip_scale, self.dtype, self.norm
        project = resample != "none" and self.updown == "resblock_projected"
        return block(channels, resample, *options, project, name=name)(h, embedding, train)

    def _attention(self, h: Array, text: TextFeatures | None, name: str) -> Array:
        if name in self.skipped:
            return h
        impl = IDENTITY if name in self.identity_attention else self.attention_impl
        width = self._head_width(h.shape[-1])
        options = width, self.skip_scale, impl, self.dtype, self.norm
        h = rematerialized(layers.AttentionBlock, self.remat)(*options, name=name)(h)
        if text is None:
            return h
        options = width, self.skip_scale, self.attention_impl, self.dtype, self.norm
        block = rematerialized(layers.CrossAttentionBlock, self.remat)
        return block(*options, name=f"{name}_text")(h, text.states, text.mask)

    def _head_width(self, channels: int) -> int | None:
        """Channels per head of an attention of this many channels."""
        if channels % max(self.heads, 1):
            raise UserError(
                f"heads={self.heads} does not divide the {channels} channels of an attention; use "
                "a divisor, or 0 and head_width"
            )
        return channels // self.heads if self.heads else self.head_width

    def _down(
        self, h: Array, embedding: Array, text: TextFeatures | None, train: bool
    ) -> tuple[Array, list[Array]]:
        """The encoder: the smallest feature map, and every map that the decoder receives again."""
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                name, channels = f"down_{level}_{i}", self.width * multiplier
                h = self._residual(h, embedding, train, channels, name)
                if h.shape[1] in self.attention:
                    h = self._attention(h, text, f"{name}_attention")
                skips.append(h)
            if level < len(self.multipliers) - 1:
                h = self._resample(h, embedding, train, "down", f"down_{level}_half")
                skips.append(h)
        return h, skips

    def _up(
        self,
        h: Array,
        skips: list[Array],
        embedding: Array,
        text: TextFeatures | None,
        train: bool,
    ) -> Array:
        """The decoder, which takes the feature maps of the encoder in reverse order."""
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                name, channels = f"up_{level}_{i}", self.width * multiplier
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._residual(h, embedding, train, channels, name)
                once = self.decoder_attention_once and i < self.blocks
                if h.shape[1] in self.attention and not once:
                    h = self._attention(h, text, f"{name}_attention")
            if level > 0:
                h = self._resample(h, embedding, train, "up", f"up_{level}_double")
        return h

    def _resample(
        self, h: Array, embedding: Array, train: bool, direction: str, name: str
    ) -> Array:
        if self.updown in ("resblock", "resblock_projected"):
            return self._residual(h, embedding, train, h.shape[-1], name, resample=direction)
        axes = h.ndim - 2
        if direction == "down":  # (0, 1) is TensorFlow's SAME, with which DDPM was trained
            padding = (1, 1) if self.updown == "conv_centred" else (0, 1)
            return layers.conv(
                h.shape[-1], axes=axes, stride=2, padding=padding, dtype=self.dtype, name=name
            )(h)
        conv = layers.conv(h.shape[-1], axes=axes, dtype=self.dtype, name=name)
        return conv(layers.nearest(h))

    def _check(self, x: Array) -> None:
        """Checks options and shapes while tracing."""
        if self.updown not in UPDOWN:
            raise unknown("updown", self.updown, UPDOWN)
        if self.dtype not in layers.DTYPES:
            raise unknown("dtype", self.dtype, layers.DTYPES)
        layers.check_axes(x, "the U-Net")
        multiple = self.stem * 2 ** (len(self.multipliers) - 1)
        if any(size % multiple for size in x.shape[1:-1]):
            raise UserError(
                f"{layers.sizes_in_words(x)} do not fit a U-Net: stem={self.stem} and "
                f"multipliers={self.multipliers} need multiples of {multiple}; resize or pad the "
                "data, or use fewer multipliers or a smaller stem"
            )


# The members of the family, which a config may name.
NETWORKS = (UNet,)
