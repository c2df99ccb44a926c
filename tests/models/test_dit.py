"""The diffusion transformer: the authors' program on converted weights, what the paper counts, and
its options.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models import dit
from diffusion_jax.models.dit import SIZES, DiT
from diffusion_jax.models.transformer import TransformerBlock
from diffusion_jax.pretrained import layouts, networks

FIXTURE = Path(__file__).parents[1] / "fixtures" / "dit.npz"
TINY = dict(num_classes=5, patch=2, width=24, depth=2, heads=3, learn_variance=True)


def shapes(module, shape):
    """Abstract parameters and output: nothing is compiled."""
    x, c = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, c)
    return variables["params"], jax.eval_shape(module.apply, variables, x, c)


def count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@functools.cache
def reference() -> dict:
    with np.load(FIXTURE) as saved:
        return dict(saved)


def converted() -> dict:
    """The authors' weights in our layout. Nothing may be missing, and nothing left over."""
    params, _ = shapes(DiT(**TINY), (3, 8, 8, 4))
    wanted = {path: leaf.shape for path, leaf in layouts.flat(params).items()}
    weights = {name: tensor for name, tensor in reference().items() if "." in name}
    found = layouts.to_ours(layouts.table(networks.network("DiT"), TINY, wanted), weights, wanted)
    return jax.tree.unflatten(jax.tree.structure(params), [found[path] for path in wanted])


@functools.cache
def run(**options):
    """The network with the fixture's weights, at the fixture's inputs or others: (x NHWC, c_noise,
    labels) -> out.
    """
    module = DiT(**TINY | options)
    params = converted()
    apply = jax.jit(lambda x, c, y: module.apply({"params": params}, x, c, {"label": y}))
    return lambda x, c, y: np.asarray(apply(x, np.float32(c), np.asarray(y)))


def inputs():
    f = reference()
    return f["x"].transpose(0, 2, 3, 1), f["t"] / 1000, f["y"]


def test_the_authors_program_on_converted_weights():
    expected = reference()["out"].transpose(0, 2, 3, 1)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(run()(*inputs()), expected, atol=1e-4)


def test_xl_2_has_the_parameters_of_the_public_weights():
    """675,129,632 numbers in the public 256 x 256 file, of which 256 tokens x 1152 are the fixed
    places.
    """
    params, out = shapes(
        DiT(num_classes=1000, patch=2, learn_variance=True, **SIZES["XL"]), (1, 32, 32, 4)
    )
    assert count(params) == 675_129_632 - 256 * 1152
    assert out.shape == (1, 32, 32, 8) and out.dtype == jnp.float32


@pytest.mark.parametrize(
    "size, millions", [("S", 33), ("B", 130), ("L", 458)]
)  # table 1 of the paper
def test_sizes(size, millions):
    params, _ = shapes(
        DiT(num_classes=1000, patch=2, learn_variance=True, **SIZES[size]), (1, 32, 32, 4)
    )
    assert round(count(params) / 1e6) == millions


def test_positions_differ_column_first():
    """The same places at every column (or row) of a grid that is not square, and frequencies from 1
    down.
    """
    places = np.asarray(dit.position_embedding((3, 5), 16)).reshape(3, 5, 16)
    np.testing.assert_array_equal(places[0, :, :8], places[2, :, :8])
    np.testing.assert_array_equal(places[:, 0, 8:], places[:, 4, 8:])
    some = [np.sin(3), np.sin(3e-3), np.cos(3), np.sin(2), np.cos(2)]
    np.testing.assert_allclose(places[2, 3, [0, 3, 4, 8, 12]], some, rtol=1e-5)
    assert len(np.unique(places.reshape(15, 16), axis=0)) == 15


def test_series_and_volumes_have_tokens_with_places_of_their_own():
    """Each axis has an equal part of the features; what three of them leave over is 0."""
    volume = np.asarray(dit.position_embedding((2, 3, 4), 16)).reshape(2, 3, 4, 16)
    line = np.asarray(dit.position_embedding((4,), 4))
    for axis, of in ((2, volume[1, 2]), (1, volume[1, :, 3]), (0, volume[:, 2, 3])):
        own = slice(4 * (2 - axis), 4 * (3 - axis))
        np.testing.assert_array_equal(of[:, own], line[: len(of)])
    assert not volume[..., 12:].any()
    for shape in ((2, 8, 3), (2, 4, 2, 8, 3)):
        params, out = shapes(DiT(**TINY), shape)
        assert out.shape == (*shape[:-1], 6)
        assert params["first"]["kernel"].shape == (3 * 2 ** (len(shape) - 2), 24)


def test_zero_at_init_and_blocks_are_the_identity():
    module = DiT(**TINY)
    init = jax.jit(lambda x, c: module.init(jax.random.key(0), x, c)["params"])
    x, c, y = inputs()
    params = init(x, c)
    zero = {"modulation", "last_modulation", "last"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        assert bool(np.any(leaf)) == (names[-1] != "bias" and not zero & set(names)), names
    for name, fan in {"first": (16 + 24) / 2, "block_0/qkv": (24 + 72) / 2}.items():  # Xavier
        kernel = functools.reduce(lambda tree, key: tree[key], name.split("/"), params)["kernel"]
        assert 0.85 < np.std(kernel) * np.sqrt(fan) < 1.15
    table = params["condition"]["label"]["rows"]
    assert 0.015 < np.std(table) < 0.025 and table.shape == (6, 24)
    assert not np.any(jax.jit(module.apply)({"params": params}, x, c))
    block = TransformerBlock(3)
    h, embedding = (
        x.reshape(3, 32, 8)[..., :8] @ np.ones((8, 24), np.float32),
        np.ones((3, 24), np.float32),
    )
    out, _ = jax.jit(lambda h: block.init_with_output(jax.random.key(0), h, embedding, False))(h)
    np.testing.assert_array_equal(out, h)


def test_examples_are_their_own_and_labels_and_noise_matter():
    x, c, y = inputs()
    out = run()(x, c, y)
    other = run()(np.r_[x[:1], -x[1:]], c + [0, 0.1, 0.1], y)
    np.testing.assert_allclose(out[0], other[0], rtol=1e-5, atol=1e-5)
    assert np.abs(run()(x, c, [1, 3, 5]) - out).max(axis=(1, 2, 3)).tolist()[1:] == [0, 0]
    assert np.abs(run()(x, c, [1, 3, 5])[0] - out[0]).max() > 1e-2
    assert np.abs(run()(x, c + 0.01, y) - out).max(axis=(1, 2, 3)).min() > 1e-2
    assert np.isnan(run()(x, c, [6, -1, 0])[:2]).all()


def test_remat_changes_no_gradient_and_bfloat16_is_close():
    x, c, y = inputs()
    params = converted()

    def gradient(remat):
        module = DiT(**TINY, remat=remat)

        def loss(p):
            return jnp.mean(jnp.square(module.apply({"params": p}, x, c, {"label": y})))

        return jax.device_get(jax.jit(jax.grad(loss))(params))

    plain = gradient("none")
    for remat in ("block", "dots"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
            gradient(remat),
            plain,
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        assert np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)
    exact, rough = run()(x, c, y), run(dtype="bfloat16")(x, c, y)
    assert 1e-5 < np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2)) < 0.05


def test_a_loop_of_blocks_is_the_blocks():
    """The same output and gradient, with the blocks' parameters stacked; each block is initialized
    by itself.
    """
    x, c, y = inputs()
    params = converted()
    blocks = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(params.pop(f"block_{i}") for i in range(TINY["depth"]))
    )
    module = DiT(**TINY, scan_blocks=True, remat="block")

    def loss(p):
        return jnp.sum(jnp.sin(module.apply({"params": p}, x, c, {"label": y})))

    value, grads = jax.jit(jax.value_and_grad(loss))(params | {"blocks": blocks})
    np.testing.assert_allclose(value, np.sum(np.sin(run()(x, c, y))), rtol=1e-4)
    assert all(
        np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))).min() > 1e-7
        for leaf in jax.tree.leaves(grads["blocks"])
    )
    fresh = jax.jit(
        lambda: module.init(jax.random.key(0), x, c)["params"]["blocks"]["qkv"]["kernel"]
    )()
    assert fresh.shape == (2, 24, 72) and np.abs(fresh[0] - fresh[1]).max() > 0.1


def test_a_tensor_shard_of_qkv_is_whole_heads():
    """The second third of the columns of qkv is enough to compute the second head."""
    block, embedding = TransformerBlock(3), np.zeros((2, 24), np.float32)
    h = np.float32(np.random.default_rng(0).standard_normal((2, 4, 24)))
    params = converted()["block_0"]
    zero, one = np.zeros(24, np.float32), np.ones(24, np.float32)
    gates = {
        "kernel": np.zeros((24, 144), np.float32),
        "bias": np.concatenate([zero, zero, one, zero, zero, zero]),
    }
    only_attention = params | {
        "project": {"kernel": np.eye(24, dtype=np.float32), "bias": zero},
        "modulation": gates,
    }
    whole = block.apply({"params": only_attention}, h, embedding, False) - h
    norm = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
    q, k, v = np.split(
        norm @ params["qkv"]["kernel"][:, 24:48] + params["qkv"]["bias"][24:48], 3, axis=-1
    )
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / np.sqrt(8), axis=-1)
    np.testing.assert_allclose(whole[..., 8:16], weights @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, shape, words",
    [
        (dict(patch=4), (1, 8, 6, 4), ["8 x 6", "patch=4", "multiples"]),
        (dict(heads=5), (1, 8, 8, 4), ["width=24", "heads=5"]),
        (dict(width=30), (1, 8, 8, 4), ["width=30", "and of 4"]),
        (dict(dtype="half"), (1, 8, 8, 4), ["'half'", "bfloat16, float16"]),
        (dict(attention_impl="flash"), (1, 8, 8, 4), ["'flash'", "fused, plain"]),
        (dict(noise_embedding="sinus"), (1, 8, 8, 4), ["'sinus'", "adm"]),
        (dict(), (4, 2), ["(4, 2)", "MLP"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, shape, words):
    with pytest.raises(UserError) as error:
        shapes(DiT(**TINY | options), shape)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
