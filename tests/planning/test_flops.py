"""FLOPs of programs, counted before compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models import dit
from diffusion_jax.planning import cards, devices, flops
from tests.planning.eight_devices import small


def counted(function, *shapes):
    return flops.count(
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    )


def test_flops_of_known_programs():
    matmul = 2 * 3 * 5 * 7
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == matmul
    assert (
        counted(lambda a, b: jnp.einsum("hij,hjk->hik", a, b), (4, 3, 5), (4, 5, 7)) == 4 * matmul
    )

    def loss(a, b):
        return jnp.sum(jnp.tanh(a @ b))

    assert counted(jax.grad(loss, (0, 1)), (3, 5), (5, 7)) == 3 * matmul

    def twice(a, b):
        return jnp.sum(jnp.tanh(a @ b) ** 2)

    assert (
        counted(jax.grad(jax.checkpoint(twice), (0, 1)), (3, 5), (5, 7)) == 4 * matmul
    )  # the product is computed again

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ b), None), a, None, length=6)[0]

    assert counted(loop, (3, 7), (7, 7)) == 6 * 2 * 3 * 7 * 7

    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert counted(jax.jit(either), (3, 5), (5, 7)) == matmul


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_convolutions(stride):
    """Forwards 2 B H' W' k k C C'; the gradients by input and by kernel take as much each, at any
    stride, but for edges.
    """

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 32, 32, 6), (3, 3, 6, 8)
    once = 2 * 2 * (32 // stride) ** 2 * 3 * 3 * 6 * 8
    assert counted(conv, *shapes) == once
    both = counted(jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), (0, 1)), *shapes)
    assert both == pytest.approx(3 * once, rel=0.1)


def test_the_flops_of_a_transformer():
    """Forwards 2 for each weight and token, 4 T D a token for attention, the condition once an
    image; thrice that.
    """
    tokens, width, batch = 16, 32, 32
    per_token = 2 * 12 * width**2 + 4 * tokens * width + 2 * 2 * 4 * width
    condition = 2 * (256 * width + width**2 + 6 * width**2 + 2 * width**2)
    traced = cards.trace(small(), devices.Topology("here", "cpu", jax.devices()[:1], None))[1]
    assert flops.count(traced.jaxpr) == pytest.approx(
        3 * batch * (tokens * per_token + condition), rel=0.05
    )


def test_the_flops_of_dit_xl_2_are_those_of_the_paper():
    """118.64 Gflops for an image of 32 x 32 latents (Peebles & Xie 2023, table 1), which counts a
    multiply-add as one.
    """
    network = dit.DiT(num_classes=1000, learn_variance=True, scan_blocks=True, **dit.SIZES["XL"])
    x, c, key = (
        jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
        jax.random.key(0),
    )
    jaxpr = jax.make_jaxpr(network.apply)(jax.eval_shape(network.init, key, x, c), x, c)
    assert flops.count(jaxpr) == pytest.approx(2 * 118.64e9, rel=1e-3)


def test_other_settings_do_the_same_work():
    """Without compiling: by accumulation and steps per call the work does not change, by
    rematerialization it does.
    """
    where = devices.Topology("here", "tpu", jax.devices()[:1], None)
    plain = flops.count(cards.trace(small(), where)[1].jaxpr)

    def of(**changes):
        return flops.count(cards.trace(small(**changes), where)[1].jaxpr)

    assert of(**{"training.accumulate": 2}) == pytest.approx(plain)
    assert of(**{"training.steps_per_call": 3}) == pytest.approx(3 * plain)
    assert 1.15 < of(**{"model.remat": "block"}) / plain < 4 / 3
    assert cards.model_flops(small(**{"model.remat": "block"}), where) == plain
