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
from diffusion_jax.models import mmdit
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.edm2 import EDM2UNet
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.models.ncsnpp import NCSNpp
from diffusion_jax.models.text import Text
from diffusion_jax.models.unet import UNet
from tests.assembly.test_guides import weights
from tests.denoisers.mixture_by_class import tiny
from tests.models.captioned import text_condition

NETWORKS = {
    "middle_attention": UNet(width=8, multipliers=(1,), blocks=1, attention=(2,), head_width=4),
    "block_1": DiT(width=8, depth=2, heads=2, patch=2),
    "down_0_0_attention": NCSNpp(width=8, multipliers=(1,), blocks=1, attention=(2,)),
    "middle_1": EDM2UNet(width=8, multipliers=(1,), blocks=1, attention=(), head_width=4),
}
HEADS = {"down_0_0_attention": (3, 1, 8)}  # of q, k and v, where they are not two of width 4
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
    qkv = qkv.reshape(2, -1, *HEADS.get(block, (2, 3, 4) if block == "block_1" else (3, 2, 4)))
    v = qkv[:, :, :, 2] if block == "block_1" else qkv[:, :, 2]
    layer = params[block]["project"]
    if block == "middle_1":  # of unit magnitude, without a bias
        kernel = layer["kernel"] / (1e-4 + np.sqrt(np.square(layer["kernel"]).mean(0)))
        v = v / (1e-4 + np.sqrt(np.square(v).mean(-1, keepdims=True)))
        layer = {"kernel": kernel / np.sqrt(len(kernel)), "bias": 0}
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
    if block == "middle_1":  # whose convolutions stay
        assert set(before[block]) - set(seen[block]) == {"qkv", "project"}
    else:
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
    looped = transformer._replace(model=transformer.model.clone(scan_blocks=True))
    with pytest.raises(UserError, match="unknown block .* 'block_1'; did you mean 'block_0'"):
        denoiser.denoiser(
            guided_by("pag(blocks=('block_1',))", looped), weights(looped, 0), scale=2.0
        )(X, 0.4, {"label": jnp.array([0, 1])})


@pytest.mark.parametrize("how", ["identity_attention", "skipped"])
def test_blocks_in_a_loop_are_perturbed_by_their_number(how):
    """The loop gives what separate blocks with the same parameters give."""
    network = DiT(width=8, depth=3, heads=2, patch=2, rope=how == "skipped")
    params = parameters(network)
    blocks = [params[f"block_{i}"] for i in range(3)]
    stacked = {name: own for name, own in params.items() if not name.startswith("block_")}
    stacked["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    looped = network.clone(scan_blocks=True)

    def out(module, own, *names):
        changed = module.clone(**{how: names})
        return jax.jit(changed.apply)({"params": own}, X, jnp.zeros(2))

    plain = out(network, params)
    for names in (("block_1",), ("block_0", "block_2")):
        expected = out(network, params, *names)
        assert np.abs(expected - plain).max() > 1e-3
        assert_allclose(out(looped, stacked, *names), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_an_image_see_themselves_and_the_text():
    """The attention whose map is masked, all at once, in float64."""
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, 2, 7, 2, 4))  # four tokens of an image, three of a text
    mask = np.ones((2, 7), bool)
    mask[1, 5:] = False
    seen = mmdit.image_alone(*(jnp.asarray(a, jnp.float32) for a in (q[:, :4], k, v)), mask)
    logits = np.einsum("bqhd,bkhd->bhqk", q[:, :4], k) / 2
    allowed = np.concatenate([np.eye(4, dtype=bool), np.ones((4, 3), bool)], axis=1)
    p = np.where(allowed & mask[:, None, None], np.exp(logits), 0)
    expected = np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), v)
    assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)


def test_a_block_of_two_streams_with_an_image_whose_tokens_are_alone():
    """In a network of that block a patch concerns its own output alone, and the text all."""
    network = MMDiT(width=8, depth=1, heads=2, text=Text(6))
    cond = text_condition()
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), X, jnp.zeros(2), cond)["params"]
    )
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.4, a.shape), "float32"), shapes)
    other = X.at[:, :, 2:].add(1.0)  # the second of two patches
    for names, alone in (((), False), (("block_0",), True)):
        run = jax.jit(network.clone(identity_attention=names).apply)
        before, after = (run({"params": params}, x, jnp.zeros(2), cond) for x in (X, other))
        assert np.abs(after - before)[:, :, 2:].max() > 1e-3
        assert (np.abs(after - before)[:, :, :2].max() < 1e-6) == alone
        told = cond | {"tokens": cond["tokens"].at[:, 0].add(jnp.arange(6, dtype=jnp.float16))}
        assert np.abs(run({"params": params}, X, jnp.zeros(2), told) - before).min() > 1e-6
