"""Perturbed-attention and skip-layer guidance: what is perturbed, and what is not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly.experiment import guided_by
from diffusion_jax.core.errors import UserError
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.unet import UNet
from tests.assembly.test_guides import weights
from tests.denoisers.mixture_by_class import tiny

NETWORKS = {
    "middle_attention": UNet(width=8, multipliers=(1,), blocks=1, attention=(2,), head_width=4),
    "block_1": DiT(width=8, depth=2, heads=2, patch=2),
}
every_network = pytest.mark.parametrize("block", NETWORKS)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 4, 1)), "float32")


@functools.cache
def plain_run(block):
    """The parameters of a network, its output and the outputs of its modules."""
    params = parameters(NETWORKS[block])
    return params, *run(NETWORKS[block], params)


def run(network, params, **changes):
    """The output at X, and the inputs and outputs of the modules by their path."""
    out, seen = network.clone(**changes).apply(
        {"params": params}, X, jnp.zeros(2), capture_intermediates=True
    )
    return out, jax.tree.map(np.asarray, seen["intermediates"])


def parameters(network):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), X, jnp.zeros(2))["params"])
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), "float32"), shapes)


@every_network
def test_only_the_attention_of_the_named_block_is_the_identity(block):
    """Every module before the block sees the same, and the block projects its values."""
    network = NETWORKS[block]
    params, plain, before = plain_run(block)
    changed, seen = run(network, params, identity_attention=(block,))
    assert np.abs(plain - changed).max() > 1e-3
    qkv = seen[block]["qkv"]["__call__"][0]
    assert_allclose(qkv, before[block]["qkv"]["__call__"][0], rtol=1e-5, atol=1e-6)
    qkv = qkv.reshape(2, -1, *((3, 2, 4) if block == "middle_attention" else (2, 3, 4)))
    v = qkv[:, :, 2] if block == "middle_attention" else qkv[:, :, :, 2]
    layer = params[block]["project"]
    projected = v.reshape(2, -1, 8) @ layer["kernel"] + layer["bias"]
    assert_allclose(
        seen[block]["project"]["__call__"][0].reshape(projected.shape),
        projected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_where_the_attention_maps_are_the_identity_nothing_changes():
    """One token attends to itself alone."""
    network = NETWORKS["block_1"]
    params, x = parameters(network), X[:, :, :2]
    both = [
        network.clone(identity_attention=names).apply({"params": params}, x, jnp.zeros(2))
        for names in ((), ("block_0", "block_1"))
    ]
    assert_allclose(*both, rtol=1e-4, atol=1e-5)


@every_network
def test_a_skipped_block_is_not_run(block):
    params, plain, before = plain_run(block)
    changed, seen = run(NETWORKS[block], params, skipped=(block,))
    assert set(before) - set(seen) == {block}
    assert np.abs(plain - changed).max() > 1e-3


def test_pag_leads_away_from_the_perturbed_network_in_one_program():
    experiment = guided_by("pag()", tiny(model="unet.UNet", shape=(2, 4, 1)))
    params = weights(experiment, 0)
    perturbed = experiment._replace(
        model=experiment.model.clone(identity_attention=("middle_attention",))
    )
    x, cond = X, {"label": jnp.array([0, 1])}
    guided = jax.jit(
        lambda scale: denoiser.denoiser(experiment, params, scale=scale, clip="none")(x, 0.4, cond)
    )
    better, worse = (
        denoiser.denoiser(one, params, clip="none")(x, 0.4, cond) for one in (experiment, perturbed)
    )
    assert np.abs(better.x0 - worse.x0).max() > 1e-3
    for scale in (0.0, 1.0, 3.0):
        expected = worse.x0 + scale * (better.x0 - worse.x0)
        assert_allclose(guided(jnp.float32(scale)).x0, expected, rtol=1e-3, atol=1e-4)
    assert guided._cache_size() == 1


def test_blocks_that_do_not_exist_are_refused():
    model = tiny(model="unet.UNet", shape=(2, 4, 1))
    params = weights(model, 0)
    for spec, words in (
        ("pag(blocks=('block_0',))", "unknown block of config.sampler.guide .*middle_attention"),
        ("slg(blocks=('middle',))", "did you mean 'middle_attention'"),
    ):
        with pytest.raises(UserError, match=words):
            denoiser.denoiser(guided_by(spec, model), params, scale=2.0)(
                X, 0.4, {"label": jnp.array([0, 1])}
            )
    transformer = tiny(model="dit.DiT", shape=(2, 4, 1))
    parameters_of_it = weights(transformer, 0) | {"registers": jnp.zeros((1, 8))}
    with pytest.raises(UserError, match="There are: block_0"):
        denoiser.denoiser(
            guided_by("slg(blocks=('middle',))", transformer), parameters_of_it, scale=2.0
        )(X, 0.4, {"label": jnp.array([0, 1])})
    with pytest.raises(UserError, match="a tuple of texts in quotation marks$"):
        guided_by("slg(blocks=3)", model)
    with pytest.raises(UserError, match="mlp.MLP has no self-attention blocks"):
        denoiser.denoiser(guided_by("pag()", tiny()), {}, scale=2.0)
    with pytest.raises(UserError, match="scan_blocks=True has one block for all"):
        DiT(width=8, depth=2, heads=2, scan_blocks=True, skipped=("block_0",)).init(
            jax.random.key(0), X, jnp.zeros(2)
        )
