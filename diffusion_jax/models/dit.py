"""The diffusion transformer, DiT (Peebles & Xie 2023), and what later papers change in it.

The paper is "Scalable diffusion models with transformers". With its options the network is that of
other papers as well:

    SiT           DiT itself, trained by flow matching (Ma et al. 2024)
    LightningDiT  rms_norm, rope, swiglu and, where training is unstable, qk_norm (Yao et al. 2025)
    JiT           all of these, bottleneck, and registers with class_registers (Li & He 2025)
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import layers, positions
from diffusion_jax.models.attention import IDENTITY
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding, concatenated
from diffusion_jax.models.positions import position_embedding
from diffusion_jax.models.remat import rematerialized
from diffusion_jax.models.text import Text, TextFeatures
from diffusion_jax.models.transformer import (
    TransformerBlock,
    modulated_norm,
    modulation,
    shared_modulation,
)

# Table 1 of the paper. DiT-XL/2 is DiT(patch=2, **SIZES["XL"]).
SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}

SMALL_INIT = nn.initializers.normal(0.02)  # of noise level, class and registers, as in their code


class DiT(nn.Module):
    """The diffusion transformer F(x, c_noise, cond): (B, N_1, ..., N_d, C), (B,), dict -> the same.

    The output is float32 and exactly 0 at initialization. A series, an image or a volume (d = 1 to
    3 axes) is cut into patches, each of which becomes a token of `width` numbers. A positional
    embedding is added; `depth` blocks (see transformer.py) follow, and a linear layer back to
    pixels. All of them receive noise level and class by adaLN-Zero (section 3.2 of the paper). The
    calling convention and cond['label'] are those of unet.UNet. Each N_i must be a multiple of
    patch, and is free otherwise, because the positions have no parameters.

    Attributes:
      num_classes: 0 is an unconditional network, which ignores labels; otherwise there is an
        embedding for each class and one for "no class".
      vector: size of cond['vector'], as in unet.UNet.
      patch: extent of a patch along each axis; for images half of it is four times the work.
      width: size of a token, see SIZES.
      depth: number of blocks, see SIZES.
      heads: number of attention heads, see SIZES.
      mlp_ratio: hidden units of a block's MLP, as a multiple of width.
      dropout: rate after the hidden units; the paper has none.
      learn_variance: the output has 2C channels, the second C for the variance (Nichol & Dhariwal
        2021, eq. 15).
      extra_channels: channels of cond['concat'], which the tokens receive besides x.
      noise_embedding: one of embeddings.NOISE_FEATURES; 'adm' in 1000 c_noise is the authors'.
      second_time: the network also receives cond['to'], the time at which a move ends (MeanFlow).
      dtype: one of layers.DTYPES, for tokens and blocks. Parameters, norms, softmax, the
        embedding of noise level and class, last layer and output are float32.
      remat: see remat.rematerialized.
      attention_impl: see attention.multi_head.
      scan_blocks: runs the blocks in one loop, over parameters 'blocks' with a leading axis `depth`
        instead of 'block_0', ...; one block is compiled instead of all. For accelerators.
      identity_attention: names of blocks, 'block_0', ..., whose attention map is the identity, for
        perturbed-attention guidance (Ahn et al. 2024); parameters are not concerned.
      skipped: names of blocks that are left out, for skip-layer guidance.
      text: reads captions out of cond (models/text.py). Their pooled vector is added to the
        embedding of the condition, and every block attends to their states.
      rms_norm: see transformer.TransformerBlock.
      qk_norm: see transformer.TransformerBlock.
      swiglu: see transformer.TransformerBlock.
      rope: rotary embeddings in every attention (see positions.rotary_angles).
      absolute_positions: adds the sinusoidal embedding of its place to each token.
      in_context: noise level, class and text are a token each in front of the others, instead of
        adaLN-Zero (section 3.2 of the paper).
      shared_modulation: one layer makes the shifts, scales and gates of all blocks, to which each
        adds a table of its own: adaLN-single (Chen et al. 2024, PixArt-alpha), without the layer
        that is a third of a block's parameters. Blocks are then not the identity at first.
      registers: number of learned tokens without a place (Darcet et al. 2024).
      registers_from: the number of the first block that sees the registers.
      class_registers: adds the embedding of class and text to each register (Li & He 2025).
      aligned: size of the features that tokens are projected to, for representation alignment (Yu
        et al. 2025); 0: none.
      aligned_depth: number of the blocks before the projection.
      aligned_hidden: units of the two hidden layers of the projection.
      bottleneck: patches are first mapped to so many numbers (Li & He 2025); 0: to a token at once.
    """

    num_classes: int = 0
    vector: int = 0
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    learn_variance: bool = False
    extra_channels: int = 0
    noise_embedding: str = "adm"
    second_time: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_impl: str = "auto"
    scan_blocks: bool = False
    identity_attention: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    text: Text | None = None
    rms_norm: bool = False
    qk_norm: str = "none"
    swiglu: bool = False
    rope: bool = False
    absolute_positions: bool = True
    in_context: bool = False
    shared_modulation: bool = False
    registers: int = 0
    registers_from: int = 0
    class_registers: bool = False
    bottleneck: int = 0
    aligned: int = 0
    aligned_depth: int = 8
    aligned_hidden: int = 2048

    @nn.compact
    def __call__(
        self,
        x: Array,
        c_noise: Array,
        cond: Cond = None,
        train: bool = False,
        tokens: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Evaluates the network.

        Args:
          x: scaled noised samples or latents, (B, N_1, ..., N_d, C).
          c_noise: the noise level, scalar or (B,).
          cond: None, or a dict with 'label' (B,), 'vector' (B, vector), 'concat' (B, N_1, ..., N_d,
            extra_channels), with second_time 'to' (B,), and the entries that `text` reads.
          train: turns dropout on; then rngs={'dropout': key} is needed.
          tokens: returns the projected tokens as well.

        Returns:
          F, (B, N_1, ..., N_d, C or 2C) float32; with tokens (F, {'tokens': (B, T, aligned)}).

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        self._check(x)
        cond = cond or {}
        text = self.text(cond, x.shape[0]) if self.text else None
        parts = ConditionEmbedding(
            256,
            self.width,
            self.num_classes,
            self.noise_embedding,
            SMALL_INIT,
            SMALL_INIT,
            self.second_time,
            vector=self.vector,
            name="condition",
        ).parts(c_noise, cond, x.shape[0], text and text.pooled)
        embedding = self._for_blocks(parts)
        seen = concatenated(x, cond, self.extra_channels)
        patches = layers.space_to_depth(seen, self.patch)  # (B, N_1 / patch, ..., patch^d C)
        b, *sizes, _ = patches.shape
        h, projected = self._blocks(self._tokens(patches), sizes, embedding, parts, text, train)
        shift, scale = self._for_last(parts, embedding)
        h = modulated_norm(h, shift, scale, self.rms_norm, self.in_context, "last_norm")
        outputs = x.shape[-1] * (2 if self.learn_variance else 1) * self.patch ** len(sizes)
        last = nn.Dense(outputs, kernel_init=layers.ZERO_INIT, name="last")
        h = last(h).reshape(b, *sizes, -1)  # float32
        h = layers.depth_to_space(h, self.patch).astype(jnp.float32)
        return (h, {"tokens": projected}) if tokens else h

    def _for_blocks(self, parts: Sequence[Array]) -> Array | None:
        """What the blocks are given of the condition, see transformer.TransformerBlock."""
        if self.in_context:
            return None
        embedding = jax.nn.silu(functools.reduce(operator.add, parts))
        if not self.shared_modulation:
            return embedding
        shared = nn.Dense(6 * self.width, kernel_init=SMALL_INIT, name="modulation")(embedding)
        return shared.reshape(-1, 6, self.width).astype(self.dtype)

    def _for_last(
        self, parts: Sequence[Array], embedding: Array | None
    ) -> Sequence[Array] | tuple[float, float]:
        """Shift and scale of the last norm."""
        if embedding is None:
            return 0.0, 0.0
        if not self.shared_modulation:
            return modulation(embedding, self.width, 2, "float32", "last_modulation")
        table = self.param("table", nn.initializers.normal(self.width**-0.5), (2, self.width))
        return shared_modulation(table, functools.reduce(operator.add, parts)[:, None])

    def _tokens(self, patches: Array) -> Array:
        """The tokens of patches, (B, N_1, ..., N_d, channels) -> (B, T, width), with positions."""
        dense = functools.partial(nn.Dense, kernel_init=KERNEL_INIT, dtype=self.dtype)
        if self.bottleneck:
            patches = dense(self.bottleneck, use_bias=False, name="bottleneck")(patches)
        b, *sizes, _ = patches.shape
        h = dense(self.width, name="first")(patches).reshape(b, math.prod(sizes), self.width)
        if self.absolute_positions:
            h = h + position_embedding(sizes, self.width).astype(self.dtype)
        return h

    def _blocks(
        self,
        h: Array,
        sizes: Sequence[int],
        embedding: Array | None,
        parts: Sequence[Array],
        text: TextFeatures | None,
        train: bool,
    ) -> tuple[Array, Array | None]:
        """The blocks, (B, T, width) -> the same, and projected tokens.

        Tokens besides the T exist only between the blocks.
        """
        tokens, angles, projected = h.shape[1], None, None
        if self.rope:
            places = positions.grid_places(sizes)
            angles = positions.rotary_angles(places, self.width // self.heads)
        if self.in_context:
            h, angles = prepended(jnp.stack(parts, axis=1), h, angles)
        make = functools.partial(
            rematerialized(TransformerBlock, self.remat, static_argnums=(3,)),
            self.heads,
            self.mlp_ratio,
            self.dropout,
            dtype=self.dtype,
            rms_norm=self.rms_norm,
            qk_norm=self.qk_norm,
            swiglu=self.swiglu,
        )
        for i in range(1 if self.scan_blocks else self.depth):
            if self.registers and i == self.registers_from:
                h, angles = prepended(self._register_tokens(parts), h, angles)
            if self.scan_blocks:
                h = self._scanned(make, h, embedding, text, train, angles)
                continue
            name = f"block_{i}"
            impl = IDENTITY if name in self.identity_attention else self.attention_impl
            if name not in self.skipped:
                h = make(impl=impl, name=name)(h, embedding, train, angles, text)
            if self.aligned and i + 1 == self.aligned_depth:
                projected = self._projected(h[:, -tokens:])
        return h[:, -tokens:], projected

    def _scanned(
        self,
        make: functools.partial,
        h: Array,
        embedding: Array | None,
        text: TextFeatures | None,
        train: bool,
        angles: np.ndarray | None,
    ) -> Array:
        """The blocks in one loop, in which those that guidance perturbs are flagged."""
        names = [f"block_{i}" for i in range(self.depth)]
        flags = {
            how: jnp.array([name in getattr(self, how) for name in names])
            for how in ("identity_attention", "skipped")
            if getattr(self, how)
        }

        def one(
            block: nn.Module,
            h: Array,
            embedding: Array | None,
            text: TextFeatures | None,
            own: dict,
        ) -> tuple[Array, None]:
            after = block(h, embedding, train, angles, text, own.get("identity_attention"))
            return (jnp.where(own["skipped"], h, after) if "skipped" in own else after), None

        loop = nn.scan(
            one,
            length=self.depth,
            in_axes=(nn.broadcast, nn.broadcast, 0),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )
        return loop(make(impl=self.attention_impl, name="blocks"), h, embedding, text, flags)[0]

    def _projected(self, h: Array) -> Array:
        """Tokens in the space of an encoder's features, (B, T, width) -> (B, T, aligned)."""
        dense = functools.partial(nn.Dense, kernel_init=KERNEL_INIT, dtype=self.dtype)
        for i in (1, 2):
            h = jax.nn.silu(dense(self.aligned_hidden, name=f"aligned_{i}")(h))
        return dense(self.aligned, name="aligned_3")(h).astype(jnp.float32)

    def _register_tokens(self, parts: Sequence[Array]) -> Array:
        """The registers, (B, registers, width)."""
        own = self.param("registers", SMALL_INIT, (self.registers, self.width))
        registers = jnp.broadcast_to(own, (len(parts[0]), *own.shape))
        if self.class_registers and len(parts) > 1:
            registers = registers + functools.reduce(operator.add, parts[1:])[:, None]
        return registers

    def _check(self, x: Array) -> None:
        """Checks options and shapes while tracing."""
        if self.dtype not in layers.DTYPES:
            raise unknown("dtype", self.dtype, layers.DTYPES)
        last = 0 if self.scan_blocks else self.depth - 1
        if self.registers and not 0 <= self.registers_from <= last:
            raise UserError(
                f"registers_from={self.registers_from} must be the number of a block, 0 to {last}"
                + (", since scan_blocks=True has one block for all" if self.scan_blocks else "")
            )
        if self.in_context and self.shared_modulation:
            raise UserError(
                "in_context=True and shared_modulation=True: with the condition among the tokens "
                "nothing is modulated; set one of them to False"
            )
        if self.aligned and not (1 <= self.aligned_depth <= self.depth and not self.scan_blocks):
            raise UserError(
                f"aligned_depth={self.aligned_depth} must be 1 to depth={self.depth}, without "
                "scan_blocks, which has one block for all"
            )
        layers.check_axes(x, "the DiT")
        if any(size % self.patch for size in x.shape[1:-1]):
            raise UserError(
                f"{layers.sizes_in_words(x)} do not fit a DiT with patch={self.patch}: they must "
                "be multiples of it; resize the data, or choose another patch"
            )
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"width={self.width} must be a multiple of heads={self.heads} and of 4; see "
                "dit.SIZES"
            )


def prepended(
    tokens: Array, h: Array, angles: np.ndarray | None
) -> tuple[Array, np.ndarray | None]:
    """Puts tokens without a place in front of others.

    Args:
      tokens: (B, R, D).
      h: the others, (B, T, D).
      angles: the rotary angles of the others, (T, A), or None.

    Returns:
      All tokens, (B, R + T, D) of h's type, and their angles, (R + T, A), those of the first being
      0, or None.
    """
    if angles is not None:
        angles = np.pad(angles, ((tokens.shape[1], 0), (0, 0)))
    return jnp.concatenate([tokens.astype(h.dtype), h], axis=1), angles


# The members of the family, which a config may name.
NETWORKS = (DiT,)
