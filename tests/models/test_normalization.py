"""Group norm against flax's, with both rules of its derivative."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import arrays, forward_mode
from diffusion_jax.models.normalization import Form, GroupNorm

GROUPS, EPSILON = 2, 1e-6
X = np.random.default_rng(0).normal(3, 2, (3, 4, 5, 6)).astype(np.float32)
VECTORS = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)  # scale, shift
PARAMS = {
    name: np.random.default_rng(n).normal(1, 0.5, 6).astype(np.float32)
    for n, name in enumerate(("scale", "bias"))
}


def expected(params, x, vectors, silu):
    y = nn.GroupNorm(GROUPS, epsilon=EPSILON).apply({"params": params}, x)
    if vectors is not None:
        scale, shift = vectors[:, :, None, None]
        y = y * (1 + scale) + shift
    return jax.nn.silu(y) if silu else y


def found(params, x, vectors, silu):
    more = () if vectors is None else tuple(vectors)
    form = Form(GROUPS, EPSILON, silu, "float32")
    return GroupNorm(form).apply({"params": params}, x, *more)


def value_and_gradients(function, vectors, silu):
    weights = np.cos(np.arange(X.size)).reshape(X.shape)

    def loss(params, x, vectors):
        return jnp.sum(weights * function(params, x, vectors, silu) ** 2)

    which = (0, 1) if vectors is None else (0, 1, 2)
    return jax.value_and_grad(loss, which)(PARAMS, X, vectors)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # JAX's derivative, and the rule of its own
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("vectors", [None, VECTORS], ids=["plain", "conditioned"])
def test_values_and_gradients_are_those_of_flax(platform, silu, vectors):
    reference = value_and_gradients(expected, vectors, silu)
    with arrays.compiling_for(platform):
        ours = value_and_gradients(found, vectors, silu)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max())


def test_it_has_a_forward_derivative_on_every_platform():
    def run(function, x):
        return function(PARAMS, x, VECTORS, True)

    reference = jax.jvp(lambda x: run(expected, x), (X,), (np.cos(X),))
    with arrays.compiling_for("gpu"):
        ours = forward_mode.jvp(lambda x: run(found, x), (X,), (np.cos(X),))
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_type_of_the_result_is_that_of_the_form():
    """Sums of bfloat16 features are in float32: 4,096 ones are 4,096, not 256."""
    x = jnp.ones((1, 64, 64, 2), jnp.bfloat16)
    form = Form(1, EPSILON, False, "bfloat16")
    y = GroupNorm(form).apply({"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 0, atol=1e-3)
