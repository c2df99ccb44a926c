"""Encoders of text and the part of a network that reads them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models import attention, text
from diffusion_jax.models.bert import Bert, convert
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import weights
from tests.models.captioned import TINY, text_condition

FIXTURE = np.load(Path(__file__).parents[1] / "fixtures" / "text.npz")


def test_our_bert_is_bert():
    tensors = {
        name.removeprefix("tiny/"): FIXTURE[name]
        for name in FIXTURE.files
        if name.startswith("tiny/")
    }
    bert = Bert(vocabulary=30, positions=12, width=16, depth=2, heads=4)
    params = convert(tensors, 2)
    states = bert.apply({"params": params}, FIXTURE["ids"], FIXTURE["mask"])
    np.testing.assert_allclose(states * FIXTURE["mask"][..., None], FIXTURE["states"], atol=2e-5)
    fresh = jax.eval_shape(bert.init, jax.random.key(0), FIXTURE["ids"], FIXTURE["mask"])["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)


def test_minilm_is_minilm():
    """Tokens, states and sentence embeddings, where the weights and the library are here."""
    pytest.importorskip("tokenizers")
    try:
        weights.load("minilm")
    except UserError as error:
        pytest.skip(str(error))
    encoder = text.minilm(20, weights.load)
    asked = FIXTURE["captions"].tolist()
    found = encoder.encode(asked)
    ids = FIXTURE["minilm_ids"]
    assert (
        found["mask"].sum(1).tolist()
        == (ids > 0).sum(1).tolist()
        == [encoder.count(caption) for caption in asked]
    )
    np.testing.assert_allclose(found["pooled"], FIXTURE["minilm_pooled"], atol=1e-3)  # float16
    np.testing.assert_allclose(found["tokens"][:, :3, :64], FIXTURE["minilm_first"], atol=3e-3)
    assert not found["tokens"][~found["mask"]].any()


def test_without_the_library_or_the_weights_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)  # import raises
    with pytest.raises(
        UserError, match=r"needs the library tokenizers: pip install 'diffusion_jax\[text\]'"
    ):
        text.minilm(8, lambda name: {"tokenizer.json": np.zeros(1, np.uint8)}).encode(["x"])
    with pytest.raises(UserError, match="run python -m experiments.get_weights minilm"):
        weights.load("minilm", cache_dir=tmp_path)


def test_bytes_are_utf8_plus_one():
    encoder = text.bytes(6)
    ids = encoder.encode(["ab\x00", "café noir", ""])["bytes"]
    assert ids.tolist() == [[98, 99, 1, 0, 0, 0], [c + 1 for c in "café ".encode()], [0] * 6]
    assert encoder.count("café") == 5


@pytest.mark.parametrize("impl", ["plain", "fused"])
def test_masked_keys_are_not_there(impl):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 2, 4)) for i, n in enumerate((3, 5, 5)))
    mask = jnp.array([[True, True, False, False, False], [False, True, False, True, True]])
    out = attention.multi_head(q, k, v, impl, mask)
    for b in range(2):
        kept = np.flatnonzero(mask[b])
        alone = attention.multi_head(q[b : b + 1], k[b : b + 1, kept], v[b : b + 1, kept], "plain")
        np.testing.assert_allclose(out[b], alone[0], atol=1e-6)


@pytest.fixture(scope="module")
def frozen():
    """A U-Net of captions by a frozen encoder whose parameters are all random, as a function of
    cond.
    """
    module = UNet(text=text.Text(6), **TINY)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    params = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(2), None)["params"]
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    params = jax.tree.unflatten(
        tree, [jnp.asarray(0.5 * random.standard_normal(s.shape), jnp.float32) for s in leaves]
    )
    return jax.jit(lambda cond: module.apply({"params": params}, x, jnp.zeros(2), cond)), params


def test_a_network_sees_the_tokens_of_the_mask_and_no_others(frozen):
    run, _ = frozen
    cond = text_condition()
    out = run(cond)
    beyond = cond | {"tokens": cond["tokens"].at[1, 1:].add(9.0)}
    within = cond | {"tokens": cond["tokens"].at[1, 0, :3].add(9.0)}
    pooled = cond | {"pooled": cond["pooled"].at[1, :3].add(9.0)}
    np.testing.assert_array_equal(run(beyond), out)
    for changed in (within, pooled):
        assert np.abs(run(changed) - out)[1].max() > 1e-2
        np.testing.assert_array_equal(run(changed)[0], out[0])


def test_without_tokens_there_is_the_learned_state_of_no_caption(frozen):
    run, params = frozen
    nothing = text_condition(lengths=(0, 0))
    np.testing.assert_allclose(run(nothing), run(jax.tree.map(jnp.zeros_like, nothing)), atol=1e-5)
    mixed = run(text_condition(lengths=(3, 0)))
    np.testing.assert_allclose(mixed[0], run(text_condition(lengths=(3, 3)))[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], run(nothing)[1], atol=1e-5)
    assert {"null_state", "null_pooled"} <= set(params["text"])


def test_without_an_encoder_the_parameters_are_the_old_ones():
    x, key = jnp.zeros((1, 4, 4, 1)), jax.random.key(0)

    def shapes(**options):
        return jax.eval_shape(UNet(**options, **TINY).init, key, x, jnp.zeros(1))

    plain, captioned = shapes()["params"], shapes(text=text.Text(6))["params"]
    new = set(captioned) - set(plain)
    assert (
        new == {"text"} | {f"{k}_text" for k in plain if k.endswith("attention")} and len(new) == 5
    )
    assert {k: captioned[k] for k in plain if k != "condition"} == {
        k: v for k, v in plain.items() if k != "condition"
    }
    assert set(captioned["condition"]) - set(plain["condition"]) == {"text"}


def test_a_reader_with_weights_of_numpy_is_traced():
    """Weights are numpy arrays after a checkpoint is read, and constants of a program in `edit`."""
    reader, mask = Bert(257, 8, width=8, depth=1, heads=2), np.ones((2, 8), bool)
    shapes = jax.eval_shape(reader.init, jax.random.key(0), np.zeros((2, 8), int), mask)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def run(ids):
        return reader.apply(params, ids, mask)

    assert jax.eval_shape(run, jax.ShapeDtypeStruct((2, 8), jnp.int32)).shape == (2, 8, 8)
