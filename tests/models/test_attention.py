"""Attention: one result in any number of blocks, derivatives of every kind, and linear memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import arrays, forward_mode
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import attention
from diffusion_jax.models.attention import Blocks
from tests.models.networks import normal

MASK = np.array([[True, True, False, True, False], [False, True, True, True, True]] * 2)


def inputs(width, dtype=np.float32):
    """Queries (4, 7, 2, width), and keys and values (4, 5, 2, width)."""
    return tuple(1.5 * normal(i, (4, n, 2, width), dtype) for i, n in enumerate((7, 5, 5)))


def definition(q, k, v, mask):
    """The definition, in float64."""
    logits = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    p = np.exp(np.where(mask[:, None, None], logits, -np.inf))
    return np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), v)


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_ways(impl, blocks, q, k, v, mask):
    """The result, and the gradient of the sum of its sines."""

    def attend(q, k, v):
        if blocks is None:
            return attention.multi_head(q, k, v, impl, mask)
        return attention.blocked(q, k, v, blocks, mask)

    out, pull = jax.vjp(attend, q, k, v)
    return out, pull(jnp.cos(out))


@pytest.mark.parametrize("width", [8, 24, 128])
def test_every_implementation_is_the_definition(width):
    """Keys may be masked, and blocks need not divide the 7 queries."""
    q, k, v = inputs(width)
    expected = definition(q, k, v, MASK)
    plain, gradients = both_ways("plain", None, q, k, v, MASK)
    assert_allclose(plain, expected, atol=2e-6)
    for case in (("fused", None), ("", Blocks(2, 1)), ("", Blocks(1, 3)), ("", Blocks(4, 2))):
        out, others = both_ways(*case, q, k, v, MASK)
        assert_allclose(out, expected, atol=2e-6)
        for a, b in zip(gradients, others, strict=True):
            assert_allclose(a, b, atol=1e-5)


def test_without_a_mask_all_keys_exist():
    q, k, v = inputs(8)
    out, _ = both_ways("", Blocks(2, 2), q, k, v, None)
    assert_allclose(out, definition(q, k, v, np.ones_like(MASK)), atol=2e-6)


def test_self_attention_takes_queries_keys_and_values_apart(monkeypatch):
    """Value and gradient are those of multi_head, also in parts of the batch and of the queries."""
    qkv = normal(0, (4, 7, 3, 2, 8))

    def both_ways_of(attend, blocks):
        monkeypatch.setattr(attention, "blocks_for", lambda *_: blocks)
        return jax.jit(jax.value_and_grad(lambda a: jnp.sum(jnp.sin(attend(a, "blocked")))))(qkv)

    def multi_head(a, impl):
        return attention.multi_head(*jnp.unstack(a, axis=2), impl)

    value, gradient = both_ways_of(multi_head, Blocks())
    for blocks in (Blocks(), Blocks(2, 1), Blocks(4, 2)):
        found = both_ways_of(attention.self_attention, blocks)
        assert_allclose(found[0], value, rtol=1e-5)
        assert_allclose(found[1], gradient, atol=1e-5)


@pytest.mark.parametrize("impl", ["plain", "fused", "blocked"])
def test_known_answers(impl):
    """Equal keys: the mean of the values. A key far ahead of the others: its value, though
    exp(logit) overflows.
    """
    q, v = np.ones((1, 5, 2, 4), np.float32), normal(0, (1, 5, 2, 4))
    ahead = np.where(np.arange(5)[:, None, None] == 3, np.float32(100), np.zeros_like(q))
    attend = jax.jit(attention.multi_head, static_argnums=3)
    mean = np.broadcast_to(v.mean(1, keepdims=True), v.shape)
    assert_allclose(attend(q, q, v, impl), mean, atol=1e-6)
    assert_allclose(attend(q, ahead, v, impl), np.broadcast_to(v[:, 3:4], v.shape), atol=1e-6)


def test_forward_mode_against_finite_differences():
    with jax.enable_x64(True):
        qkv, direction = normal(0, (2, 3, 2, 6, 2, 4), np.float64)
        f = jax.jit(lambda a: attention.blocked(*a, Blocks(2, 3)))
        derivative = jax.jit(lambda a, d: jax.jvp(f, (a,), (d,))[1])(qkv, direction)
        h = 1e-5
        difference = (f(qkv + h * direction) - f(qkv - h * direction)) / (2 * h)
        assert difference.dtype == np.float64
    assert_allclose(derivative, difference, rtol=1e-7, atol=1e-9)


def test_second_derivatives():
    """The gradient of a tangent, the tangent of a gradient, and both for each of several directions
    (vmap) are those of one block.
    """
    qkv, directions = normal(0, (3, 2, 6, 2, 4)), normal(1, (3, 3, 2, 6, 2, 4))

    def all_of(blocks):
        def f(a):
            return jnp.sin(attention.blocked(*a, blocks)).sum()

        def tangent(a, d):
            return jax.jvp(f, (a,), (d,))[1]

        def each(d):
            return jax.grad(tangent)(qkv, d), jax.jvp(jax.grad(f), (qkv,), (d,))[1]

        return jax.jit(jax.vmap(each))(directions)

    one, several = all_of(Blocks()), all_of(Blocks(2, 2))
    assert_allclose(one[0], one[1], atol=1e-4)
    assert_allclose(several, one, atol=1e-4)


def test_bfloat16_is_within_a_thousandth_of_float32():
    """The root mean square error of result and tangent, as a share of the largest entry."""
    qkv, d = (jnp.asarray(normal(i, (3, 1, 64, 2, 16)), jnp.bfloat16) for i in (0, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def tangent(blocks, qkv, d):
        return jax.jvp(lambda a: attention.blocked(*a, blocks), (qkv,), (d,))

    exact = tangent(Blocks(), qkv.astype(jnp.float32), d.astype(jnp.float32))
    for close, e in zip(tangent(Blocks(1, 2), qkv, d), exact, strict=True):
        assert close.dtype == jnp.bfloat16
        error = np.asarray(close, np.float32) - e
        assert np.sqrt(np.mean(error**2)) < 1e-3 * np.abs(e).max()


@pytest.mark.parametrize("how", ["forward", "backward", "tangent"])
def test_memory_is_linear_in_the_tokens(how):
    """At 1,024 tokens it is at most half of that of attention in one block.

    At 2,048 tokens it is at most twice that at 1,024.
    """

    def temporary(impl, tokens):
        one = jax.ShapeDtypeStruct((4, tokens, 4, 16), jnp.float32)
        attend = functools.partial(attention.multi_head, impl=impl)
        programs = {
            "forward": attend,
            "backward": jax.grad(lambda *a: jnp.sum(attend(*a) ** 2), (0, 1, 2)),
            "tangent": lambda *a: jax.jvp(attend, a, a),
        }
        compiled = jax.jit(programs[how]).lower(one, one, one).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # XLA's CPU may run the forward pass as one kernel, whose memory it does not report
    logits = 4 * 4 * 4 * 1024**2
    blocked = temporary("blocked", 1024)
    assert blocked <= max(logits, temporary("plain", 1024)) / 2
    assert temporary("blocked", 2048) <= 2 * blocked


def test_auto_has_a_forward_mode_on_every_platform():
    """'auto' is in blocks on a CPU, and elsewhere where a forward-mode derivative is taken."""
    x = jnp.zeros((1, 600, 1, 8))

    def loops(platform):
        with arrays.compiling_for(platform):
            return "scan" in str(jax.make_jaxpr(lambda x: attention.multi_head(x, x, x))(x))

    assert not loops("gpu") and not loops("tpu")
    with forward_mode.forward_mode():
        assert loops("gpu") and loops("tpu")
    q, k, v = inputs(8)
    auto, blocked = (both_ways(impl, None, q, k, v, None)[0] for impl in ("auto", "blocked"))
    if jax.default_backend() == "cpu":
        assert_array_equal(auto, blocked)


def test_blocks_fit_the_cache_of_a_cpu():
    """Parts of the batch come first, and divide it; queries are divided where one example is too
    large.
    """
    with arrays.compiling_for("cpu"):
        assert attention.blocks_for((64, 256, 8, 8), 256) == (32, 1)
        assert attention.blocks_for((61, 256, 8, 8), 256) == (61, 1)
        assert attention.blocks_for((4, 64, 8, 8), 64) == (1, 1)
        assert attention.blocks_for((2, 1024, 4, 8), 1024) == (2, 4)
    with arrays.compiling_for("gpu"):
        assert attention.blocks_for((64, 256, 8, 8), 256) == (1, 1)
        assert attention.blocks_for((2, 1025, 4, 8), 1025) == (1, 5)


def test_the_fused_attention_of_a_cpu_refuses_float16():
    q, *_ = inputs(8, jnp.float16)
    with pytest.raises(UserError, match="fused has no float16 on a CPU; set .*impl=auto"):
        attention.multi_head(q, q, q, "fused")


def test_cudnn_gets_an_even_number_of_tokens_in_16_bits():
    """JAX refuses the kernel's derivative for other numbers, such as the 49 of a 7x7 map."""

    def fits(length, width=64, dtype=jnp.bfloat16):
        x = jax.ShapeDtypeStruct((1, length, 1, width), dtype)
        return attention._cudnn_fits(x, x)

    with arrays.compiling_for("gpu"):
        assert fits(64) and fits(64, dtype=jnp.float16) and not fits(49)
        assert not fits(64, dtype=jnp.float32) and not fits(64, width=136) and not fits(64, 12)
    with arrays.compiling_for("tpu"):
        assert not fits(64)
