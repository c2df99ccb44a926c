"""Small networks, their inputs and random parameters, for a battery that holds for all."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.unet import UNet

TINY = dict(width=8, multipliers=(1, 2), blocks=1, attention=(4,), head_width=8)


NETS = {
    "unet": (
        UNet(num_classes=3, dropout=0.5, attention_impl="plain", **TINY | {"attention": ()}),
        (4, 8, 8, 1),
    ),
    "mlp": (MLP(num_classes=3, dropout=0.5, width=16, blocks=2), (4, 2)),
}


def shapes(module, shape, cond=None):
    """Abstract parameters and output: nothing is compiled."""
    x, c = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, c, cond)
    return variables["params"], jax.eval_shape(module.apply, variables, x, c, cond)


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(shape):
    return normal(1, shape), np.linspace(0.1, 0.9, shape[0], dtype=np.float32)


@functools.cache
def params_of(name):
    """Parameters without zeros, so that every path carries signal. Compiles nothing."""
    abstract, _ = shapes(*NETS[name])
    random = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.5 if leaf.ndim == 1 else math.prod(leaf.shape[:-1]) ** -0.5
        return scale * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(draw, abstract)


@functools.cache
def forward(name):
    module, _ = NETS[name]
    apply = jax.jit(
        lambda params, x, c, labels: module.apply({"params": params}, x, c, {"label": labels})
    )
    return lambda params, x, c, labels: np.asarray(
        apply(params, x, c, np.asarray(labels, np.int32))
    )


@functools.cache
def gradient(name, **options):
    module, shape = NETS[name]
    module = module.clone(**options)
    params = params_of(name)
    x, c = inputs(shape)
    cond = {"label": np.array([0, 1, 2, 3])}

    def loss(params):
        return jnp.mean((module.apply({"params": params}, x, c, cond) - jnp.cos(3 * x)) ** 2)

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
