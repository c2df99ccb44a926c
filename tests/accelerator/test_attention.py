"""Attention fused (cuDNN's flash kernel on NVIDIA GPUs) and in blocks, against the plain one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import attention
from tests.accelerator.mode import device, pick

SIZES = pick(  # (tokens, width of a head); each is a program of its own for every path
    ((63, 32), (64, 40), (257, 64), (100, 96), (1024, 128)), ((7, 32), (8, 128))
)
HEADS = pick(4, 2)
FUSED = pick(("bfloat16", "float16"), ("bfloat16",))  # JAX's attention has no float16 on a CPU


def inputs(length, width, dtype):
    """q, k, v, and the gradient that arrives at the output."""
    rng = np.random.default_rng(length + width)
    shape = (2, length, HEADS, width)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(4)]


@functools.partial(jax.jit, static_argnames="impl")
def forward_and_backward(q, k, v, gradient, impl):
    with jax.default_matmul_precision("highest"):
        out, pull = jax.vjp(lambda *args: attention.multi_head(*args, impl), q, k, v)
        return out, *pull(gradient)


@pytest.mark.parametrize("impl", ["fused", "blocked"])
@pytest.mark.parametrize("length, width", SIZES)
def test_attention_is_the_plain_one_in_float32(length, width, impl):
    given = inputs(length, width, jnp.float32)
    plain, other = (forward_and_backward(*given, impl=name) for name in ("plain", impl))
    for expected, found in zip(plain, other, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize(
    "dtype, impl",
    [*((dtype, "fused") for dtype in FUSED), ("bfloat16", "blocked"), ("float16", "blocked")],
)
@pytest.mark.parametrize("length, width", SIZES)
def test_attention_is_as_exact_as_the_plain_one_in_16_bits(dtype, length, width, impl):
    """Both are compared with float32 on the same rounded inputs; a constant says how much more
    rounding a fused kernel may have than the plain path has.
    """
    given = inputs(length, width, dtype)
    exact = forward_and_backward(*(x.astype(jnp.float32) for x in given), impl="plain")

    def errors(name):
        found = forward_and_backward(*given, impl=name)
        return [
            float(jnp.sqrt(jnp.mean((a.astype(jnp.float32) - b) ** 2) / jnp.mean(b**2)))
            for a, b in zip(found, exact, strict=True)
        ]

    plain, other = errors("plain"), errors(impl)
    assert max(plain) < 0.02
    for found, expected in zip(other, plain, strict=True):
        assert found < 2 * expected + 2e-3


@pytest.mark.parametrize("dtype", FUSED)
def test_16_bits_on_an_nvidia_gpu_run_the_flash_kernel(dtype):
    """By the compiled program: cuDNN's kernel is there, forwards and backwards, where it exists."""
    given = inputs(64, 64, dtype)
    text = forward_and_backward.lower(*given, impl="fused").compile().as_text()
    nvidia = device().platform == "gpu" and "NVIDIA" in device().device_kind
    assert ("cudnn$fmha" in text) == nvidia
    assert ("cudnn$fmhaSoftmaxBackward" in text) == nvidia
