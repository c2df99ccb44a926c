"""The options of the diffusion transformer: LightningDiT and JiT, rotations, registers, conditions
as tokens.
"""

from __future__ import annotations

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models import positions
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.text import Text, TextFeatures
from diffusion_jax.pretrained import layouts, networks
from tests.fixtures import seeded_weights
from tests.models.captioned import text_condition
from tests.models.networks import shapes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lightning_dit.npz"
LIGHTNING = dict(rms_norm=True, qk_norm="rms", rope=True, swiglu=True)
JIT = LIGHTNING | dict(bottleneck=6, registers=3, registers_from=1, class_registers=True)
TINY = dict(num_classes=5, patch=2, width=24, depth=2, heads=3, noise_embedding="adm_plain")
SMALL = dict(patch=1, width=8, depth=1, heads=2)


def their_words(options) -> dict[str, str]:
    """The authors' names, with w1 and w2 for the two halves of w12."""
    own = {
        "norm_1": "norm1",
        "norm_2": "norm2",
        "query_norm": "attn.q_norm",
        "key_norm": "attn.k_norm",
        "mlp_gate": "mlp.w1",
        "mlp_in": "mlp.w2",
        "mlp_out": "mlp.w3",
        "last_norm": "final_layer.norm_final",
    }
    if options.get("bottleneck"):
        own |= {"bottleneck": "x_embedder.proj1", "first": "x_embedder.proj2"}
    return networks.network("DiT").words(options) | own


def their_layouts(options) -> dict[str, layouts.Layout]:
    usual = networks.network("DiT").layouts(options)
    if options.get("bottleneck"):
        usual |= {"bottleneck/kernel": usual["first/kernel"], "first/kernel": layouts.POINT}
    return usual


def of_the_authors(options):
    """Parameters of our network from the seeded weights under the authors' names."""
    params, _ = shapes(DiT(**options), (3, 8, 8, 4))
    wanted = {path: leaf.shape for path, leaf in layouts.flat(params).items()}
    own = {path: wanted.pop(path) for path in ("registers",) if path in wanted}
    network = networks.network("DiT")._replace(words=their_words, layouts=their_layouts)
    table = layouts.table(network, options, wanted)
    blank = {path: np.broadcast_to(np.float32(0), shape) for path, shape in wanted.items()}
    theirs = {name: a.shape for name, a in layouts.to_theirs(table, blank).items()}
    joined = {
        name.replace(".w1.", ".w12."): (2 * shape[0], *shape[1:]) if ".w1." in name else shape
        for name, shape in theirs.items()
        if ".w2." not in name
    }
    if own:
        joined["in_context_posemb"] = (1, *own["registers"])
    drawn = seeded_weights.weights(joined)
    for name in [name for name in drawn if ".w12." in name]:
        halves = np.split(drawn.pop(name), 2)
        drawn |= {name.replace("w12", part): half for part, half in zip(("w1", "w2"), halves)}
    own = {path: drawn.pop("in_context_posemb")[0] for path in own}
    found = layouts.to_ours(table, drawn, wanted) | own
    return jax.tree.unflatten(
        jax.tree.structure(params), [found[path] for path in layouts.flat(params)]
    )


@pytest.mark.parametrize("name, options", [("lightning", LIGHTNING), ("jit", JIT)])
def test_the_authors_programs_on_seeded_weights(name, options):
    with np.load(FIXTURE) as saved:
        f = dict(saved)
    module = DiT(**TINY, **options)
    params = of_the_authors(TINY | options)
    x = f["x"].transpose(0, 2, 3, 1)
    out = jax.jit(module.apply)({"params": params}, x, f["t"], {"label": f["y"]})
    assert np.abs(f[name]).max() > 1
    np.testing.assert_allclose(out, f[name].transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (2, 3, 4)])
def test_rotated_attention_depends_on_differences_of_places_alone(sizes):
    """Every product of a query and a key stays when all places are shifted, and not when one axis
    is stretched; each axis turns pairs of its own.
    """
    head, axes = 14, len(sizes)
    places = positions.grid_places(sizes)
    random = np.random.default_rng(0)
    q, k = random.standard_normal((2, 1, len(places), 2, head))

    def products(where):
        angles = positions.rotary_angles(where, head)
        turned = [positions.rotate(jnp.asarray(a, jnp.float32), angles) for a in (q, k)]
        return np.einsum("bthd,bshd->bhts", *turned)

    plain = products(places)
    np.testing.assert_allclose(products(places + random.integers(1, 9, axes)), plain, atol=1e-4)
    np.testing.assert_allclose(
        np.einsum("bthd,bthd->bht", q, k), np.einsum("bhtt->bht", plain), atol=1e-4
    )
    share = head // (2 * axes)
    for axis in range(axes):
        stretched = places * np.where(np.arange(axes) == axis, 2, 1)
        assert np.abs(products(stretched) - plain).max() > 0.1
        changed = positions.rotary_angles(stretched, head) != positions.rotary_angles(places, head)
        assert set(np.flatnonzero(changed.any(0)) // share) == {axis}


def test_rotations_keep_lengths_and_turn_by_their_angles():
    x = jnp.asarray([[[[1.0, 0.0, 0.0, 2.0]]]])
    turned = positions.rotate(x, np.float32([[0.3, 0.5]]))[0, 0, 0]
    expected = [np.cos(0.3), np.sin(0.3), -2 * np.sin(0.5), 2 * np.cos(0.5)]
    np.testing.assert_allclose(turned, expected, rtol=1e-6)
    np.testing.assert_allclose(positions.rotary_angles(np.array([[2], [3]]), 4)[1], [3, 0.03])


@functools.cache
def of(**options):
    """The network with random parameters, and its run on other inputs: (params, run)."""
    module = DiT(**SMALL | options)
    random = np.random.default_rng(3)
    abstract, _ = shapes(module, (2, 2, 2, 1))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.4, leaf.shape), jnp.float32), abstract
    )
    return params, jax.jit(lambda p, x, c, y: module.apply({"params": p}, x, c, {"label": y}))


X = np.float32(np.random.default_rng(4).standard_normal((2, 2, 2, 1)))
SOME = jnp.arange(6, dtype=jnp.float16)
C, Y = np.float32([0.2, 0.8]), np.array([0, 1])


def test_tokens_have_no_place_but_that_of_their_positions():
    """Without positions the network permutes with its patches; with either kind it does not."""
    for options, alike in (({}, True), ({"rope": True}, False), ({"absolute": True}, False)):
        options = dict(options)
        options["absolute_positions"] = options.pop("absolute", False)
        params, run = of(num_classes=2, **options)
        turned = run(params, X[:, ::-1], C, Y)[:, ::-1]
        assert (np.abs(turned - run(params, X, C, Y)).max() < 1e-4) == alike


def test_registers_are_seen_and_the_class_is_in_them_if_asked():
    """Registers change what the patches become. The class reaches them where it has no other way,
    with the modulation switched off.
    """
    for own in (False, True):
        params, run = of(num_classes=2, registers=2, class_registers=own)
        assert params["registers"].shape == (2, 8)
        out = run(params, X, C, Y)
        assert out.shape == X.shape
        other = params | {"registers": jnp.roll(params["registers"], 1, axis=1)}
        assert np.abs(run(other, X, C, Y) - out).max() > 1e-3
        block = params["block_0"] | {
            "modulation": jax.tree.map(jnp.zeros_like, params["block_0"]["modulation"])
            | {"bias": jnp.ones(48)}
        }
        last = jax.tree.map(jnp.zeros_like, params["last_modulation"])
        silent = params | {"block_0": block, "last_modulation": last}
        changed = np.abs(run(silent, X, C, 1 - Y) - run(silent, X, C, Y)).max()
        assert (changed > 1e-3) == own


def test_a_text_is_read_by_cross_attention():
    """Every pixel sees the states that exist, and none before the projection has been learned; a
    loop of blocks does the same, with all other options.
    """
    options = SMALL | LIGHTNING | dict(num_classes=2, text=Text(6), registers=2, depth=2)
    module, cond = DiT(**options), text_condition() | {"label": Y}
    random = np.random.default_rng(3)
    abstract = shapes(module, (2, 2, 2, 1), cond)[0]
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.4, leaf.shape), jnp.float32), abstract
    )
    run = jax.jit(lambda p, cond: module.apply({"params": p}, X, C, cond))
    out = run(params, cond)
    other = cond | {"tokens": cond["tokens"].at[0, 0].add(SOME)}
    changed = np.abs(run(params, other) - out)
    assert changed[0].min() > 1e-5 and changed[1].max() == 0
    beyond = cond | {"tokens": cond["tokens"].at[:, 3].add(SOME)}
    np.testing.assert_array_equal(run(params, beyond), out)
    names = [f"block_{i}" for i in range(2)]
    mute = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
    deaf = dict(params)
    for name in names:
        deaf[name] = params[name] | {"text": params[name]["text"] | {"project": mute}}
    deaf["condition"] = params["condition"] | {
        "text": {"kernel": jnp.zeros((6, 8)), "bias": jnp.zeros(8)}
    }
    np.testing.assert_array_equal(run(deaf, other), run(deaf, cond))
    rest = {name: own for name, own in params.items() if name not in names}
    rest["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(params.get, names))
    looped = module.clone(scan_blocks=True, remat="block")
    np.testing.assert_allclose(
        jax.jit(looped.apply)({"params": rest}, X, C, cond), out, rtol=1e-4, atol=1e-5
    )


def test_conditions_in_context_are_tokens():
    """Noise level and class matter, the norms have parameters, and nothing is modulated."""
    params, run = of(num_classes=2, in_context=True, rope=True)
    assert set(params["block_0"]) == {"norm_1", "norm_2", "qkv", "project", "mlp_in", "mlp_out"}
    assert set(params["last_norm"]) == {"scale", "bias"} and "last_modulation" not in params
    out = run(params, X, C, Y)
    assert np.abs(run(params, X, C + 0.1, Y) - out).max() > 1e-3
    assert np.abs(run(params, X, C, 1 - Y) - out).max() > 1e-3
    np.testing.assert_allclose(run(params, X[::-1], C[::-1], Y[::-1])[::-1], out, atol=1e-5)


def test_a_gated_mlp_has_as_many_parameters():
    def parameters(swiglu):
        block = shapes(DiT(patch=1, width=24, depth=1, heads=3, swiglu=swiglu), (1, 2, 2, 1))[0]
        names = ("mlp_in", "mlp_out") + (("mlp_gate",) if swiglu else ())
        return sum(block["block_0"][name]["kernel"].size for name in names)

    assert parameters(False) == parameters(True) == 8 * 24**2


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(qk_norm="l2"), ["'l2'", "layer, none, rms"]),
        (dict(rope=True, heads=4), ["the 2 channels of a head", "2 axes", "heads"]),
        (dict(registers=1, registers_from=1), ["registers_from=1", "0 to 0"]),
        (dict(registers=1, registers_from=1, depth=2, scan_blocks=True), ["scan_blocks=True"]),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        shapes(DiT(**SMALL | options), (1, 4, 4, 1))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


class Projected(nn.Module):
    """The states of a condition through an MLP of two layers, as diffusers' PixArt reads them."""

    width: int

    @nn.compact
    def __call__(self, cond: dict, batch: int) -> TextFeatures:
        states = cond.get("states", jnp.zeros((batch, 5, 10)))
        h = jax.nn.gelu(nn.Dense(self.width, name="one")(states), approximate=True)
        mask = cond.get("mask", jnp.ones((batch, 5), bool))
        return TextFeatures(nn.Dense(self.width, name="two")(h), mask, jnp.zeros((batch, 1)))


def of_pixart(f) -> dict:
    """Parameters of DiT of the seeded weights of the fixture, by the names of diffusers."""
    shape_of = {name[6:]: tuple(a) for name, a in f.items() if name.startswith("shape/")}
    theirs = seeded_weights.weights(shape_of)

    def layer(name):
        return {"kernel": theirs.pop(f"{name}.weight").T, "bias": theirs.pop(f"{name}.bias")}

    def block(at):
        parts = [layer(f"{at}.attn1.to_{part}") for part in "qkv"]
        by_head = {
            leaf: np.stack(
                [own[leaf].reshape(*own[leaf].shape[:-1], 3, 8) for own in parts], -2
            ).reshape(*parts[0][leaf].shape[:-1], 72)
            for leaf in ("kernel", "bias")
        }
        text = {
            ours: layer(f"{at}.attn2.to_{part}")
            for ours, part in (("query", "q"), ("key", "k"), ("value", "v"), ("project", "out.0"))
        }
        return {
            "table": theirs.pop(f"{at}.scale_shift_table"),
            "qkv": by_head,
            "project": layer(f"{at}.attn1.to_out.0"),
            "text": text,
            "mlp_in": layer(f"{at}.ff.net.0.proj"),
            "mlp_out": layer(f"{at}.ff.net.2"),
        }

    patch = theirs.pop("pos_embed.proj.weight").transpose(2, 3, 1, 0).reshape(-1, 24)
    noise = "adaln_single.emb.timestep_embedder.linear_{}"
    params = {
        "first": {"kernel": patch, "bias": theirs.pop("pos_embed.proj.bias")},
        "condition": {f"noise_{i}": layer(noise.format(i)) for i in (1, 2)}
        | {"text": {"kernel": np.zeros((1, 24)), "bias": np.zeros(24)}},
        "modulation": layer("adaln_single.linear"),
        "text": {"one": layer("caption_projection.linear_1")}
        | {"two": layer("caption_projection.linear_2")},
        "table": theirs.pop("scale_shift_table"),
        "last": layer("proj_out"),
        **{f"block_{i}": block(f"transformer_blocks.{i}") for i in range(2)},
    }
    assert not theirs
    return params


def test_the_program_of_diffusers_with_text_on_seeded_weights():
    """PixArt's transformer: cross-attention under a mask, and shared modulation."""
    with np.load(FIXTURE.with_name("pixart.npz")) as saved:
        f = dict(saved)
    module = DiT(
        patch=2,
        width=24,
        depth=2,
        heads=3,
        learn_variance=True,
        text=Projected(24),
        shared_modulation=True,
    )
    cond = {"states": f["states"], "mask": f["mask"]}
    x = f["x"].transpose(0, 2, 3, 1)
    out = jax.jit(module.apply)({"params": of_pixart(f)}, x, f["t"] / 1000, cond)
    assert np.abs(f["out"]).max() > 1
    np.testing.assert_allclose(out, f["out"].transpose(0, 2, 3, 1), atol=1e-4)
