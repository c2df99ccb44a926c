"""A battery for all networks: initialization, labels, noise level, dropout, gradients and types."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models.dropout import Dropout
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.ncsnpp import NCSNpp
from diffusion_jax.models.unet import UNet
from tests.models.networks import NETS, forward, gradient, inputs, params_of, shapes

each_net = pytest.mark.parametrize("name", NETS)


def initial(name, keep):
    """The initial values of the parameters whose path keep accepts; XLA drops the others, whose
    compilation is slow.
    """
    module, shape = NETS[name]

    def init(x, c):
        leaves = jax.tree_util.tree_leaves_with_path(module.init(jax.random.key(0), x, c)["params"])
        return {
            path: leaf
            for p, leaf in leaves
            if keep(path := jax.tree_util.keystr(p, simple=True, separator="/"))
        }

    return jax.jit(init)(*inputs(shape))


def test_mlp_refuses_images_and_widens_for_the_variance():
    with pytest.raises(UserError, match="U-Net"):
        shapes(MLP(), (1, 8, 8, 1))
    assert shapes(MLP(learn_variance=True), (4, 3))[1].shape == (4, 6)


@each_net
def test_output_is_exactly_zero_at_init(name):
    """The last layer starts at zero; whatever the rest computes, the output is zero."""
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    labels = np.array([0, 1, 2, 3])
    last = initial(name, lambda path: path.startswith("last/"))
    out = forward(name)(
        params | {"last": {k.split("/")[1]: v for k, v in last.items()}}, x, c, labels
    )
    assert out.shape == x.shape and not np.any(out)
    assert np.all(
        np.abs(forward(name)(params, x, c, labels)).max(axis=tuple(range(1, x.ndim))) > 1e-2
    )


def test_branches_start_at_zero_and_the_rest_does_not():
    zero = initial("unet", lambda path: path.endswith(("conv_2/kernel", "project/kernel")))
    assert len(zero) == 8 + 1 and not any(np.any(leaf) for leaf in zero.values())
    other = initial(
        "unet",
        lambda path: path.startswith("middle") and path.endswith(("conv_1/kernel", "qkv/kernel")),
    )
    for leaf in other.values():  # unit-gain uniform of fan 3 * 3 * 16 and 16
        assert 0.9 < np.std(leaf) * np.sqrt(math.prod(leaf.shape[:-1])) < 1.1


@each_net
def test_labels_matter_and_the_null_label_is_no_label(name):
    module, shape = NETS[name]
    params = params_of(name)
    x, c = inputs(shape)
    out = forward(name)(params, x, c, [0, 0, 0, 3])
    other = forward(name)(params, x, c, [1, 0, 2, 3])
    changed = np.abs(out - other).max(axis=tuple(range(1, x.ndim)))
    assert changed[0] > 1e-3 and changed[2] > 1e-3 and changed[1] == changed[3] == 0
    null = forward(name)(params, x, c, [3, 3, 3, 3])
    np.testing.assert_allclose(
        jax.jit(module.apply)({"params": params}, x, c), null, rtol=1e-4, atol=1e-5
    )


@each_net
def test_the_noise_level_matters(name):
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    labels = np.zeros(4)
    assert (
        np.abs(
            forward(name)(params, x, c, labels) - forward(name)(params, x, c + 0.01, labels)
        ).max()
        > 1e-3
    )


@each_net
def test_an_example_does_not_depend_on_the_others_of_its_batch(name):
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    labels = np.array([0, 1, 2, 3])
    out = forward(name)(params, x, c, labels)
    others = forward(name)(
        params, np.r_[x[:1], -3 * x[1:]], np.r_[c[:1], c[1:] + 0.3], np.array([0, 0, 0, 0])
    )
    np.testing.assert_array_equal(out[0], others[0])
    assert np.abs(out[1:] - others[1:]).max() > 1e-2
    turned = forward(name)(params, x[::-1], c[::-1], labels[::-1])
    np.testing.assert_allclose(turned[::-1], out, rtol=1e-5, atol=1e-5)


@each_net
def test_labels_out_of_range_are_not_taken_for_others(name):
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    out = forward(name)(params, x, c, [-1, 4, 3, 0])
    assert np.isnan(out[:2]).all() and np.isfinite(out[2:]).all()


@each_net
def test_dropout_is_off_by_default_and_random_by_its_key_alone(name):
    module, shape = NETS[name]
    params = params_of(name)
    x, c = inputs(shape)
    run = jax.jit(
        lambda key: module.apply({"params": params}, x, c, None, train=True, rngs={"dropout": key})
    )
    one, again, two = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-2
    assert np.abs(one - forward(name)(params, x, c, [3, 3, 3, 3])).max() > 1e-2


@each_net
def test_the_gradient_reaches_every_parameter(name):
    value, grads = gradient(name)
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)


@pytest.mark.parametrize("dtype, rounding", [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_16_bits_are_close_and_keep_parameters_and_output_in_float32(dtype, rounding):
    module, shape = NETS["unet"]
    half = module.clone(dtype=dtype)
    abstract, out = shapes(half, shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {
        jnp.dtype("float32")
    } and out.dtype == jnp.float32
    params = params_of("unet")
    x, c = inputs(shape)
    exact = forward("unet")(params, x, c, np.arange(4))
    rough = np.asarray(jax.jit(half.apply)({"params": params}, x, c, {"label": np.arange(4)}))
    error = np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))
    # no difference at all would mean that it was not used
    assert 2.5e-3 * rounding < error < 13 * rounding


@pytest.mark.parametrize("make", [UNet, NCSNpp])
def test_dropout_of_the_lower_resolutions_alone(make):
    """Of two levels, 8x8 and 4x4, the blocks whose output is 4x4 have dropout."""
    options = dict(width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.3)
    more = {"updown": "resblock"} if make is UNet else {}
    network, rates = make(**options, **more, dropout_height=4), {}

    def watch(run, args, kwargs, context):
        out = run(*args, **kwargs)
        if isinstance(context.module, Dropout):
            rates["/".join(context.module.path)] = (out.shape[1], context.module.rate)
        return out

    x = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(network.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32))
    assert {height for height, _ in rates.values()} == {4, 8}
    assert all(rate == (0.3 if height == 4 else 0.0) for height, rate in rates.values())
