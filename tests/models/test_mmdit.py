"""MM-DiT: diffusers' program on seeded weights, and its two streams."""

from __future__ import annotations

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.models.text import Text, TextFeatures
from tests.fixtures import seeded_weights
from tests.models.captioned import text_condition
from tests.models.networks import shapes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mmdit.npz"
TINY = dict(width=24, depth=2, heads=3, position_grid=(6, 4))


class Given(nn.Module):
    """The states and the pooled vector of a condition as they are."""

    @nn.compact
    def __call__(self, cond: dict, batch: int) -> TextFeatures:
        if "states" not in cond:
            return TextFeatures(
                jnp.zeros((batch, 5, 10)), jnp.ones((batch, 5), bool), jnp.zeros((batch, 7))
            )
        return TextFeatures(cond["states"], cond["mask"], cond["pooled"])


def layer(theirs: dict, name: str) -> dict:
    return {"kernel": theirs.pop(f"{name}.weight").T, "bias": theirs.pop(f"{name}.bias")}


def attended(theirs: dict, names: list[str], norms: list[str], own: str, heads: int) -> dict:
    """Queries, keys and values side by side for each head, and the norms of the first two."""
    layers = [layer(theirs, name) for name in names]
    side_by_side = {
        leaf: np.stack(
            [one[leaf].reshape(*one[leaf].shape[:-1], heads, -1) for one in layers], axis=-2
        ).reshape(*layers[0][leaf].shape[:-1], -1)
        for leaf in ("kernel", "bias")
    }
    scales = {
        f"{own}_{long}_norm": {"scale": theirs.pop(f"{name}.weight")}
        for long, name in zip(("query", "key"), norms)
        if f"{name}.weight" in theirs
    }
    return {f"{own}_qkv": side_by_side, **scales}


def swapped(own: dict) -> dict:
    """Shift before scale, of a layer that has the scale first."""
    return {leaf: np.roll(a, a.shape[-1] // 2, axis=-1) for leaf, a in own.items()}


def block_of_diffusers(theirs: dict, i: int, last: bool, heads: int) -> dict:
    at, own = f"transformer_blocks.{i}", {}
    for stream, q, project, context in (
        ("image", "to_{}", "to_out.0", ""),
        ("text", "add_{}_proj", "to_add_out", "_context"),
    ):
        names = [f"{at}.attn.{q.format(part)}" for part in "qkv"]
        added = "added_" if context else ""
        norms = [f"{at}.attn.norm_{added}{part}" for part in "qk"]
        own |= attended(theirs, names, norms, stream, heads)
        modulation = layer(theirs, f"{at}.norm1{context}.linear")
        own[f"{stream}_modulation"] = swapped(modulation) if last and context else modulation
        if not (last and context):
            own[f"{stream}_project"] = layer(theirs, f"{at}.attn.{project}")
            own[f"{stream}_mlp_in"] = layer(theirs, f"{at}.ff{context}.net.0.proj")
            own[f"{stream}_mlp_out"] = layer(theirs, f"{at}.ff{context}.net.2")
    if f"{at}.attn2.to_q.weight" in theirs:
        names = [f"{at}.attn2.to_{part}" for part in "qkv"]
        norms = [f"{at}.attn2.norm_{part}" for part in "qk"]
        own |= attended(theirs, names, norms, "image_2", heads)
        own["image_2_project"] = layer(theirs, f"{at}.attn2.to_out.0")
    return own


def of_diffusers(f: dict[str, np.ndarray], heads: int) -> dict:
    """Parameters of MMDiT of the seeded weights of the fixture, by diffusers' names."""
    theirs = seeded_weights.weights(
        {name.partition("/shape/")[2]: tuple(a) for name, a in f.items() if "/shape/" in name}
    )
    patch = theirs.pop("pos_embed.proj.weight").transpose(2, 3, 1, 0)
    embedder = "time_text_embed.{}_embedder.linear_{}"
    params = {
        "first": {
            "kernel": patch.reshape(-1, patch.shape[-1]),
            "bias": theirs.pop("pos_embed.proj.bias"),
        },
        "condition": {f"noise_{i}": layer(theirs, embedder.format("timestep", i)) for i in (1, 2)},
        **{f"pooled_{i}": layer(theirs, embedder.format("text", i)) for i in (1, 2)},
        "context": layer(theirs, "context_embedder"),
        "last_modulation": swapped(layer(theirs, "norm_out.linear")),
        "last": layer(theirs, "proj_out"),
        **{f"block_{i}": block_of_diffusers(theirs, i, i == 1, heads) for i in range(2)},
    }
    assert not theirs
    return params


CHOICES = {"plain": {}, "rms": {"qk_norm": "rms"}}
CHOICES["dual"] = {"qk_norm": "rms", "dual_attention": (0, 1)}


@pytest.mark.parametrize("name", CHOICES)
def test_the_program_of_diffusers_on_seeded_weights(name):
    with np.load(FIXTURE) as saved:
        f = dict(saved)
    own = {key: a for key, a in f.items() if key.startswith(f"{name}/shape/")}
    module = MMDiT(**TINY, **CHOICES[name], text=Given(), text_mask=False)
    params = of_diffusers(own, 3)
    x = f["x"].transpose(0, 2, 3, 1)
    cond = {"states": f["states"], "pooled": f["pooled"], "mask": np.ones((3, 5), bool)}
    out = jax.jit(module.apply)({"params": params}, x, f["t"] / 1000, cond)
    expected = f[f"{name}/out"].transpose(0, 2, 3, 1)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(out, expected, atol=1e-4)


SOME = jnp.arange(6, dtype=jnp.float16)
X, C = np.float32(np.random.default_rng(4).standard_normal((2, 4, 2, 1))), np.float32([0.2, 0.8])


@functools.cache
def small():
    """A network of the captions of text_condition, with random parameters: (params, run)."""
    module = MMDiT(width=8, depth=2, heads=2, num_classes=3, rope=True, text=Text(6))
    random = np.random.default_rng(3)
    abstract, out = shapes(module, (2, 4, 2, 1), text_condition() | {"label": np.array([0, 1])})
    assert out.shape == (2, 4, 2, 1) and out.dtype == jnp.float32
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.4, leaf.shape), jnp.float32), abstract
    )
    return params, jax.jit(lambda p, x, c, cond: module.apply({"params": p}, x, c, cond))


def test_image_and_text_see_each_other():
    """Other states change every pixel, states that do not exist none, and the text sees the
    image: cut off from it in the first block, it tells the second something else.
    """
    params, run = small()
    cond = text_condition() | {"label": np.array([0, 1])}
    out = run(params, X, C, cond)
    other = cond | {"tokens": cond["tokens"].at[0, 0].add(SOME)}
    changed = np.abs(run(params, X, C, other) - out)
    assert changed[0].min() > 1e-5 and changed[1].max() == 0
    beyond = cond | {"tokens": cond["tokens"].at[:, 3].add(SOME)}
    np.testing.assert_array_equal(run(params, X, C, beyond), out)
    block = params["block_0"]
    deaf = block | {"text_project": jax.tree.map(jnp.zeros_like, block["text_project"])}
    assert np.abs(run(params | {"block_0": deaf}, X, C, cond) - out).max() > 1e-3
    for name in ("text_project", "text_mlp_in", "image_mlp_in"):
        assert (name in params["block_1"]) == (name == "image_mlp_in")


def test_pooled_text_noise_level_and_class_modulate():
    params, run = small()
    cond = text_condition() | {"label": np.array([0, 1])}
    out = run(params, X, C, cond)
    for changes, level in (
        ({"pooled": cond["pooled"] + jnp.arange(6.0)}, C),
        ({"label": np.array([2, 2])}, C),
        ({}, C + 0.1),
    ):
        assert np.abs(run(params, X, level, cond | changes) - out).max() > 1e-3


def test_the_output_is_zero_at_initialization_and_a_skipped_block_is_left_out():
    params, run = small()
    cond = text_condition() | {"label": np.array([0, 1])}
    module = MMDiT(width=8, depth=2, heads=2, num_classes=3, rope=True, text=Text(6))
    skipping = module.clone(skipped=("block_0",))
    zero = jax.tree.map(jnp.zeros_like, params["block_0"])
    without = jax.jit(skipping.apply)({"params": params}, X, C, cond)
    np.testing.assert_allclose(
        without, run(params | {"block_0": zero}, X, C, cond), rtol=1e-4, atol=1e-5
    )
    assert np.abs(without - run(params, X, C, cond)).max() > 1e-3
    last = {"kernel": jnp.zeros_like(params["last"]["kernel"]), "bias": jnp.zeros(4)}
    assert not np.any(run(params | {"last": last}, X, C, cond))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(text=None), ["config.text.encoder", "dit.DiT"]),
        (dict(patch=4), ["4 x 2", "patch=4"]),
        (dict(heads=3), ["width=8", "heads=3"]),
        (dict(position_grid=(1, 1)), ["position_grid=(1, 1)", "2 tokens"]),
        (dict(dual_attention=(0, 1)), ["dual_attention=(0, 1)", "0 to 0"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        shapes(MMDiT(**dict(width=8, depth=1, heads=2, text=Text(6)) | options), (2, 4, 2, 1))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
