"""The multimodal diffusion transformer, MM-DiT (Esser et al. 2024, section 4; Stable Diffusion 3).

    two streams, patches of the image and states of the text, each with weights of its own;
    in every block they meet in one attention:

    q, k, v = [q_image; q_text], [k_image; k_text], [v_image; v_text]

Both streams are modulated by the noise level and the pooled text (adaLN-Zero). The text ends with
the attention of the last block, since only the image is the output. In some blocks the image's
tokens also attend to each other alone (MMDiT-X, Stable Diffusion 3.5 Medium).
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import attention, layers, positions
from diffusion_jax.models.attention import IDENTITY
from diffusion_jax.models.dit import SMALL_INIT
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding
from diffusion_jax.models.remat import product, rematerialized
from diffusion_jax.models.text import Text, TextFeatures
from diffusion_jax.models.transformer import (
    by_head,
    linear,
    mlp,
    modulated_norm,
    modulation,
    queries_or_keys,
)


class MMDiT(nn.Module):
    """MM-DiT, F(x, c_noise, cond): (B, N_1, ..., N_d, C), (B,), dict -> the same.

    The output is float32 and exactly 0 at initialization. The calling convention, cond['label'] and
    the attributes that are not listed here are those of dit.DiT. In the paper's series of sizes
    width is 64 depth, and there are depth heads.

    Attributes:
      num_classes: see dit.DiT.
      patch: see dit.DiT.
      width: size of a token of either stream.
      depth: number of blocks.
      heads: number of attention heads.
      mlp_ratio: see dit.DiT.
      noise_embedding: see dit.DiT.
      second_time: see dit.DiT.
      dtype: see dit.DiT.
      remat: see dit.DiT.
      attention_impl: see dit.DiT.
      identity_attention: names of blocks in which tokens of the image see themselves and the text
        alone, for perturbed-attention guidance.
      skipped: names of blocks that are left out, for skip-layer guidance.
      text: reads captions out of cond (models/text.py); this network needs it.
      text_mask: the attention ignores states that do not exist. Stable Diffusion 3, whose captions
        are filled up with tokens of the text encoder, has no mask.
      qk_norm: see transformer.queries_or_keys; 'rms' is Stable Diffusion 3.5.
      dual_attention: numbers of the blocks with a second attention, of the image to itself
        (MMDiT-X; Stable Diffusion 3.5 Medium has it in blocks 0 to 12).
      rope: rotary embeddings of the image's tokens, see positions.rotary_angles.
      position_grid: (largest, base): the position embedding is the middle part of that of a grid of
        `largest` tokens along each axis, whose places run from 0 to `base`, so that larger images
        have the places of smaller ones among theirs (the paper's section 5.3.2). None: places are
        0, 1, 2, ...
    """

    num_classes: int = 0
    patch: int = 2
    width: int = 1536
    depth: int = 24
    heads: int = 24
    mlp_ratio: float = 4.0
    noise_embedding: str = "adm"
    second_time: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_impl: str = "auto"
    identity_attention: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    text: Text | None = None
    text_mask: bool = True
    qk_norm: str = "none"
    dual_attention: tuple[int, ...] = ()
    rope: bool = False
    position_grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = None, train: bool = False) -> Array:
        """Evaluates the network.

        Args:
          x: scaled noised samples or latents, (B, N_1, ..., N_d, C).
          c_noise: the noise level, scalar or (B,).
          cond: None, or a dict with 'label' (B,), with second_time 'to' (B,), and the entries that
            `text` reads.
          train: not used: the paper has no dropout.

        Returns:
          F, (B, N_1, ..., N_d, C) float32.

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        self._check(x)
        cond = cond or {}
        text = self.text(cond, x.shape[0])
        embedding = self._embedding(c_noise, cond, x.shape[0], text.pooled)
        patches = layers.space_to_depth(x, self.patch)
        b, *sizes, _ = patches.shape
        h = linear(self.width, self.dtype, "first")(patches).reshape(b, -1, self.width)
        h = h + self._positions(sizes).astype(self.dtype)
        angles = None
        if self.rope:
            places = positions.grid_places(sizes)
            angles = positions.rotary_angles(places, self.width // self.heads)
        h = self._blocks(h, text, embedding, angles)
        shift, scale = modulation(embedding, self.width, 2, "float32", "last_modulation")
        h = modulated_norm(h, shift, scale)
        outputs = x.shape[-1] * self.patch ** len(sizes)
        h = nn.Dense(outputs, kernel_init=layers.ZERO_INIT, name="last")(h).reshape(b, *sizes, -1)
        return layers.depth_to_space(h, self.patch).astype(jnp.float32)

    def _embedding(self, c_noise: Array, cond: dict, batch: int, pooled: Array) -> Array:
        """Silu of the embedding of noise level, class and pooled text, (B, width)."""
        condition = ConditionEmbedding(
            256,
            self.width,
            self.num_classes,
            self.noise_embedding,
            SMALL_INIT,
            SMALL_INIT,
            self.second_time,
            name="condition",
        )(c_noise, cond, batch)
        dense = functools.partial(nn.Dense, self.width, kernel_init=KERNEL_INIT)
        pooled = dense(name="pooled_2")(jax.nn.silu(dense(name="pooled_1")(pooled)))
        return jax.nn.silu(condition + pooled)

    def _positions(self, sizes: list[int]) -> Array:
        places = positions.grid_places(sizes)
        if self.position_grid:
            largest, base = self.position_grid
            places = (places + (largest - np.array(sizes)) // 2) * (base / largest)
        return positions.embed_places(places, self.width)

    def _blocks(
        self, h: Array, text: TextFeatures, embedding: Array, angles: np.ndarray | None
    ) -> Array:
        """The blocks, (B, T, width) -> the same."""
        states = linear(self.width, self.dtype, "context")(text.states)
        mask = None
        if self.text_mask and text.mask is not None:
            mask = jnp.pad(text.mask, ((0, 0), (h.shape[1], 0)), constant_values=True)
        make = functools.partial(
            rematerialized(JointBlock, self.remat),
            self.heads,
            self.mlp_ratio,
            dtype=self.dtype,
            qk_norm=self.qk_norm,
        )
        for i in range(self.depth):
            name = f"block_{i}"
            if name not in self.skipped:
                impl = IDENTITY if name in self.identity_attention else self.attention_impl
                options = {"last": i == self.depth - 1, "dual": i in self.dual_attention}
                block = make(impl=impl, **options, name=name)
                h, states = block(h, states, embedding, mask, angles)
        return h

    def _check(self, x: Array) -> None:
        """Checks options and shapes while tracing."""
        if self.text is None:
            raise UserError(
                "config.model.name=mmdit.MMDiT reads captions: set config.text.encoder, such as "
                "bytes(), or use dit.DiT"
            )
        if self.dtype not in layers.DTYPES:
            raise unknown("dtype", self.dtype, layers.DTYPES)
        layers.check_axes(x, "the MM-DiT")
        sizes = x.shape[1:-1]
        if any(size % self.patch for size in sizes):
            raise UserError(
                f"{layers.sizes_in_words(x)} do not fit an MM-DiT with patch={self.patch}: they "
                "must be multiples of it; resize the data, or choose another patch"
            )
        if any(not 0 <= i < self.depth for i in self.dual_attention):
            raise UserError(
                f"dual_attention={self.dual_attention}: these are numbers of blocks, 0 to "
                f"{self.depth - 1}"
            )
        if self.width % self.heads or self.width % 4:
            raise UserError(f"width={self.width} must be a multiple of heads={self.heads} and of 4")
        most = max(sizes) // self.patch
        if self.position_grid and self.position_grid[0] < most:
            raise UserError(
                f"position_grid={self.position_grid}: {layers.sizes_in_words(x)} have {most} "
                f"tokens along an axis; the first number must be at least {most}"
            )


class JointBlock(nn.Module):
    """A block of two streams, image (B, T, D) and text (B, L, D) -> the same.

        [a; b] = attention of the queries, keys and values of both
        h <- h + gate_1 project(a),    h <- h + gate_2 mlp(norm(h) (1 + scale_2) + shift_2)

    and the same for the text with b, each with layers of its own (Esser et al. 2024, figure 2). It
    is the identity at initialization. A dual block adds to the image, before its MLP, the attention
    of the image's tokens to each other, with layers and modulation of its own:

        h <- h + gate_3 project_2(attention(qkv_2(norm(x) (1 + scale_3) + shift_3))),  x its input

    Attributes:
      heads: number of attention heads.
      mlp_ratio: hidden units of the MLPs, as a multiple of D.
      impl: see attention.multi_head; 'identity' is of the image's tokens, see `image_alone`.
      dtype: type of the matrix products.
      qk_norm: see transformer.queries_or_keys; the streams have parameters of their own.
      last: the text ends with the attention.
      dual: the second attention of the image.
    """

    heads: int
    mlp_ratio: float = 4.0
    impl: str = "auto"
    dtype: str = "float32"
    qk_norm: str = "none"
    last: bool = False
    dual: bool = False

    @nn.compact
    def __call__(
        self,
        h: Array,
        states: Array,
        embedding: Array,
        mask: Array | None = None,
        angles: Array | None = None,
    ) -> tuple[Array, Array]:
        """Evaluates the block.

        Args:
          h: tokens of the image, (B, T, D).
          states: tokens of the text, (B, L, D).
          embedding: silu of the embedding of the condition, (B, E).
          mask: which tokens of image and text exist, (B, T + L) bool; None: all.
          angles: rotary angles of the image's tokens, (T, D / heads // 2), or None.

        Returns:
          The tokens of the image and those of the text.
        """
        b, tokens, width = h.shape
        parts = 9 if self.dual else 6
        image = modulation(embedding, width, parts, self.dtype, "image_modulation")
        text = modulation(embedding, width, 2 if self.last else 6, self.dtype, "text_modulation")
        both = (
            self._inputs(h, image, "image", angles),
            self._inputs(states, text, "text", None),
        )
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(*both))
        if self.impl == IDENTITY:
            own = image_alone(q[:, :tokens], k, v, mask)
            rest = attention.multi_head(q[:, tokens:], k, v, "auto", mask)
            seen = jnp.concatenate([own, rest], axis=1)
        else:
            seen = attention.multi_head(q, k, v, self.impl, mask)
        seen = seen.reshape(b, -1, width)
        second = self._second(h, image, angles) if self.dual else 0.0
        h = self._outputs(h, seen[:, :tokens], image, "image", second)
        if not self.last:
            states = self._outputs(states, seen[:, tokens:], text, "text")
        return h, states

    def _inputs(
        self, h: Array, parts: list[Array], stream: str, angles: Array | None
    ) -> tuple[Array, Array, Array]:
        """The queries, keys and values of a stream, (B, T, heads, D / heads) each."""
        h = modulated_norm(h, parts[0], parts[1]).astype(self.dtype)
        qkv = by_head(h, self.heads, self.dtype, f"{stream}_qkv")
        q, k, v = jnp.unstack(qkv, axis=2)
        q = queries_or_keys(q, self.qk_norm, angles, f"{stream}_query_norm")
        return q, queries_or_keys(k, self.qk_norm, angles, f"{stream}_key_norm"), v

    def _second(self, h: Array, parts: list[Array], angles: Array | None) -> Array:
        """What the attention of the image's tokens to each other adds, (B, T, D)."""
        q, k, v = self._inputs(h, parts[6:], "image_2", angles)
        seen = attention.multi_head(q, k, v, self.impl).reshape(h.shape)
        project = linear(h.shape[-1], self.dtype, "image_2_project")
        return parts[8].astype(self.dtype) * product(project(seen))

    def _outputs(
        self, h: Array, seen: Array, parts: list[Array], stream: str, second: Array | float = 0.0
    ) -> Array:
        """A stream after the attention, and what a second one adds to it."""
        _, _, gate_1, shift_2, scale_2, gate_2 = (part.astype(self.dtype) for part in parts[:6])
        h = h + gate_1 * product(linear(h.shape[-1], self.dtype, f"{stream}_project")(seen))
        h = h + second
        inner = modulated_norm(h, shift_2, scale_2).astype(self.dtype)
        return h + gate_2 * mlp(inner, self.mlp_ratio, False, 0.0, False, self.dtype, f"{stream}_")


def image_alone(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Attention of tokens of an image to themselves and to the text, but not to each other.

    It is the identity map of Ahn et al. (2024) in the block of the image's tokens.

    Args:
      q: queries of the image's tokens, (B, T, heads, D).
      k: keys of image and text, (B, T + L, heads, D).
      v: values of image and text, (B, T + L, heads, D).
      mask: which tokens of image and text exist, (B, T + L) bool; None: all.

    Returns:
      (B, T, heads, D).
    """
    tokens = q.shape[1]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = q.astype(wide) * q.shape[-1] ** -0.5
    own = jnp.sum(q * k[:, :tokens].astype(wide), axis=-1)
    text = jnp.einsum("bthd,blhd->bthl", q, k[:, tokens:].astype(wide))
    if mask is not None:
        text = jnp.where(mask[:, None, None, tokens:], text, -jnp.inf)
    p = jax.nn.softmax(jnp.concatenate([own[..., None], text], axis=-1), axis=-1)
    seen = jnp.einsum("bthl,blhd->bthd", p[..., 1:], v[:, tokens:].astype(wide))
    return (p[..., :1] * v[:, :tokens].astype(wide) + seen).astype(v.dtype)


# The members of the family, which a config may name.
NETWORKS = (MMDiT,)
