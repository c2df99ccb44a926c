"""The convolution has JAX's value and derivatives, in a form that is fast inside loops on CPUs."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import arrays, forward_mode
from diffusion_jax.models.convolution import convolve, layout
from tests.models.networks import normal


def plain(x, kernel, *rest, **options):
    """JAX's own convolution, with channels last."""
    numbers = layout(kernel.ndim - 2)
    return jax.lax.conv_general_dilated(x, kernel, *rest, dimension_numbers=numbers, **options)


CASES = [  # kernel, strides, padding
    ((3, 3), (1, 1), "SAME"),
    ((3, 3), (2, 2), ((0, 1), (0, 1))),
    ((1, 1), (1, 1), "VALID"),
    ((4, 2), (2, 1), ((2, 1), (0, 0))),
    ((3,), (2,), ((0, 1),)),
    ((3, 2, 3), (1, 2, 2), "SAME"),
]


@pytest.mark.parametrize("size, strides, padding", CASES)
def test_value_and_derivatives(size, strides, padding):
    """The value, both gradients, the tangent, and the tangent of a gradient."""
    x, dx = normal(0, (2, 2, *(6, 5, 4)[: len(size)], 3))
    kernel, d_kernel = normal(1, (2, *size, 3, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(convolution):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolution(x, kernel, strides, padding)))

        def tangent(f):
            return jax.jvp(f, (x, kernel), (dx, d_kernel))

        each = jax.vmap(lambda one: convolution(one[None], kernel, strides, padding))(x)
        return each, tangent(loss), tangent(jax.grad(loss, (0, 1)))

    jax.tree.map(
        functools.partial(assert_allclose, rtol=1e-4, atol=1e-5),
        everything(convolve),
        everything(plain),
    )


def test_only_what_is_asked_for_is_computed():
    """The gradient by one argument has one convolution besides the value's."""
    x, kernel = normal(0, (1, 4, 4, 2)), normal(1, (3, 3, 2, 2))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, (1, 1), "SAME")))

    for argument in (0, 1):
        program = str(jax.make_jaxpr(jax.grad(loss, argument))(x, kernel))
        assert program.count("conv_general_dilated[") == 2


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order of axes is that of CPUs")
def test_in_a_loop_all_convolutions_have_the_fast_order_of_axes():
    """Forwards and backwards, and forwards and its tangent within forward_mode."""
    x, kernel = normal(0, (2, 4, 4, 3)), normal(1, (3, 3, 3, 3))

    def f(x, kernel):
        return jnp.sin(convolve(x, kernel, (1, 1), "SAME"))

    def backwards(_, args):
        return jax.grad(lambda *a: jnp.sum(f(*a)), (0, 1))(*args)

    def forwards(_, args):
        return (forward_mode.jvp(f, args, args)[1], args[1])

    for body in (backwards, forwards):
        loop = jax.jit(lambda n, *args, body=body: jax.lax.fori_loop(0, n, body, args))
        program = loop.lower(3, x, kernel).compile().as_text()
        assert "while(" in program
        assert set(re.findall(r"dim_labels=([\w>-]+)", program)) == {"b01f_01io->b01f"}


def test_elsewhere_it_is_the_convolution_of_jax():
    """Where a program is for another platform, and for groups."""
    x, kernel = normal(0, (1, 4, 4, 2)), normal(1, (3, 3, 1, 2))
    found = convolve(x, kernel, (1, 1), "SAME", feature_group_count=2)
    assert_array_equal(found, plain(x, kernel, (1, 1), "SAME", feature_group_count=2))
    with arrays.compiling_for("tpu"):
        kernel = normal(1, (3, 3, 2, 2))
        program = str(jax.make_jaxpr(lambda *a: convolve(*a, (1, 1), "SAME"))(x, kernel))
        assert "custom_jvp" not in program
