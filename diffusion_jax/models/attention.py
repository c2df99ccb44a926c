"""Multi-head attention whose memory is linear in the number of tokens.

    O = softmax(Q K^T / sqrt(D)) V,        Q (T, D), K and V (S, D), for each head

The logits are T x S numbers for each head. Row i of O needs row i of the logits alone, so the
queries fall into blocks that are computed one after the other:

    P_i = exp(Q_i K^T / sqrt(D) - m_i),    O_i = P_i V / (P_i 1),    m_i the largest logit of a row

A block sees all keys, so it needs no running maximum (Milakov & Gimelshein 2018) and no rescaling,
unlike flash attention (Dao et al. 2022), and its derivatives are those of a product, an exponential
and a product. Each block is rematerialized, so that a derivative keeps Q, K and V and computes P_i
again. It is ordinary JAX: it has derivatives in forward and reverse mode of any order.

The derivatives by K and V are sums over queries,

    dV = sum_i P_i^T dU_i,        dK = sum_i dS_i^T Q_i / sqrt(D),    U_i = P_i V, S_i the logits

and a product with a transposed T x S matrix is five times slower on a CPU than one without.
So the blocks receive K^T and V^T, (D, S): then the derivatives are dU_i^T P_i and Q_i^T dS_i, in
which only the small factor is transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, forward_mode
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array

CACHE = 4 * 2**20  # bytes of logits that a block may have on a CPU: a share of the cache
QUERIES = 256  # of a block, on an accelerator


IDENTITY = "identity"  # the implementation whose attention map is the identity: the result is v


class Blocks(NamedTuple):
    """How an attention falls into blocks.

    Attributes:
      examples: number of parts of the batch.
      queries: number of parts of the queries of an example.
    """

    examples: int = 1
    queries: int = 1


def multi_head(
    q: Array, k: Array, v: Array, impl: str = "auto", mask: Array | None = None
) -> Array:
    """Multi-head attention, softmax(q k^T / sqrt(D)) v per head (Vaswani et al. 2017, eq. 1).

    Args:
      q: queries, (B, T, heads, D).
      k: keys, (B, S, heads, D).
      v: values, (B, S, heads, D).
      impl: 'blocked' is the attention of this module. 'plain' is the same in one block. 'fused' is
        jax.nn.dot_product_attention, with cuDNN's flash kernel where the GPU has one for this type
        and width; that kernel has no forward-mode derivative. 'auto' is 'blocked' on CPUs and
        within `forward_mode`, and 'fused' elsewhere. 'identity' is v itself, for guidance (Ahn et
        al. 2024).
      mask: which keys exist, (B, S) bool, at least one for each example; None means all.

    Returns:
      (B, T, heads, D).

    Raises:
      UserError: if `impl` is unknown, or 'fused' in float16 on a CPU.
    """
    impl = _resolved(impl)
    if impl == "blocked":
        return blocked(q, k, v, blocks_for(q.shape, k.shape[1]), mask)
    if impl == "plain":
        return blocked(q, k, v, Blocks(), mask)
    if impl == "fused":
        return _fused(q, k, v, mask)
    if impl == IDENTITY:
        return v
    raise unknown("attention_impl", impl, ["auto", "blocked", "fused", "plain"])


def self_attention(qkv: Array, impl: str = "auto") -> Array:
    """Attention of the queries, keys and values of the same tokens, as `multi_head`.

    Where parts of the batch are computed one after the other, the three are taken apart within a
    part, in the cache.

    Args:
      qkv: (B, T, 3, heads, D).
      impl: see multi_head.

    Returns:
      (B, T, heads, D).
    """
    shape = qkv.shape[:2] + qkv.shape[3:]
    blocks = blocks_for(shape, shape[1])
    if _resolved(impl) != "blocked" or blocks.examples == 1:
        return multi_head(*jnp.unstack(qkv, axis=2), impl)

    def attend(part: tuple[Array], queries: int) -> Array:
        return _by_queries((*jnp.unstack(part[0], axis=2), None), queries)

    return _by_examples(attend, (qkv,), blocks)


def _resolved(impl: str) -> str:
    if impl != "auto":
        return impl
    return "blocked" if forward_mode.active() or arrays.platform() == "cpu" else "fused"


def blocks_for(shape: tuple[int, ...], keys: int) -> Blocks:
    """The blocks for the platform that programs are now traced for.

    On a CPU the logits of a block fit into the cache: the batch is divided first, into equal parts,
    and then the queries. On an accelerator, whose devices share the batch, the queries are.

    Args:
      shape: shape of the queries, (B, T, heads, D).
      keys: number of keys of an example, S.

    Returns:
      The blocks.
    """
    batch, queries, heads, _ = shape
    if arrays.platform() != "cpu":
        return Blocks(1, math.ceil(queries / QUERIES))
    parts = math.ceil(4 * batch * heads * queries * keys / CACHE)
    examples = next(n for n in range(1, batch + 1) if batch % n == 0 and n >= min(parts, batch))
    return Blocks(examples, min(queries, math.ceil(parts / examples)))


def blocked(q: Array, k: Array, v: Array, blocks: Blocks, mask: Array | None = None) -> Array:
    """Attention block by block, with the logits of one block at a time.

    Args:
      q: queries, (B, T, heads, D).
      k: keys, (B, S, heads, D).
      v: values, (B, S, heads, D).
      blocks: number of blocks; examples divides B.
      mask: which keys exist, (B, S) bool, or None.

    Returns:
      (B, T, heads, D).
    """
    if blocks == Blocks():
        q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
        return jnp.swapaxes(_attend(q, k, v, mask, "bhkd"), 1, 2)
    return _by_examples(_by_queries, (q, k, v, mask), blocks)


def _by_examples(attend: Callable[..., Array], operands: tuple, blocks: Blocks) -> Array:
    """attend(arrays, blocks.queries), for parts of the batch one after the other."""
    n, m = blocks
    if n == 1:
        return attend(operands, m)

    def split(x: Array) -> Array:
        # Part j has the examples j, n + j, ..., which leaves a batch on its devices.
        return x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)

    def part(one: tuple) -> Array:
        return attend(one, m)

    # blocks of queries are rematerialized themselves
    out = jax.lax.map(jax.checkpoint(part) if m == 1 else part, jax.tree.map(split, operands))
    return out.swapaxes(0, 1).reshape(-1, *out.shape[2:])


def _by_queries(operands: tuple[Array, Array, Array, Array | None], m: int) -> Array:
    """Attention of q, k, v and mask for m parts of the queries, one after the other."""
    q, k, v, mask = operands
    length, width = q.shape[1], q.shape[3]
    rows = math.ceil(length / m)
    q = jnp.swapaxes(q * width**-0.5, 1, 2)
    # stored as (B, heads, D, S), and not folded into the products
    k, v = (jax.lax.optimization_barrier(a.transpose(0, 2, 3, 1)) for a in (k, v))
    if m == 1:
        return jnp.swapaxes(_attend(q, k, v, mask, "bhdk"), 1, 2)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, rows * m - length), (0, 0)))
    q = q.reshape(*q.shape[:2], m, rows, width)

    @jax.checkpoint
    def block(queries: Array) -> Array:
        return _attend(queries, k, v, mask, "bhdk")

    out = jax.lax.map(block, jnp.moveaxis(q, 2, 0))  # (m, B, heads, rows, D)
    out = out.transpose(1, 0, 3, 2, 4).reshape(q.shape[0], m * rows, q.shape[1], width)
    return out[:, :length]


def _attend(q: Array, k: Array, v: Array, mask: Array | None, axes: str) -> Array:
    """Attention of scaled queries (B, heads, T, D); `axes` names those of keys and values."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum(f"bhqd,{axes}->bhqk", q, k, preferred_element_type=wide)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    # The result does not depend on what is subtracted, so neither does its derivative.
    p = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    out = jnp.einsum(f"bhqk,{axes}->bhqd", p.astype(v.dtype), v, preferred_element_type=wide)
    # T x D divisions after the product instead of T x S before it
    return (out / jnp.sum(p, axis=-1, keepdims=True)).astype(v.dtype)


def _fused(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    if q.dtype == jnp.float16 and arrays.platform() == "cpu":
        raise UserError(
            "config.model.attention_impl=fused has no float16 on a CPU; set "
            "--config.model.attention_impl=auto"
        )
    if mask is not None:  # a text, which has too few keys for a flash kernel to matter
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
    return jax.nn.dot_product_attention(
        q, k, v, implementation="cudnn" if _cudnn_fits(q, k) else None
    )


def _cudnn_fits(q: Array, k: Array) -> bool:
    """Whether cuDNN has a flash kernel: NVIDIA GPU, 16 bits, D a multiple of 8 up to 128.

    JAX refuses the kernel's derivative where the number of queries or of keys is odd, such as the
    49 of a 7x7 map (jax 0.10 to 0.12).

    A GPU that programs are compiled for and that is not present (`arrays.compiling_for`) is assumed
    to be one of NVIDIA's.
    """
    present = jax.default_backend() == "gpu"
    nvidia = not present or "NVIDIA" in jax.local_devices()[0].device_kind
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return arrays.platform() == "gpu" and nvidia and fits and even
