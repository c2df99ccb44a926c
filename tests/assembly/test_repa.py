"""Representation alignment (REPA): the term, what it reaches, and the features of a file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, digits
from diffusion_jax.assembly import datasets, train
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import features
from diffusion_jax.data.captions import CaptionedSource
from diffusion_jax.data.sources import Arrays
from diffusion_jax.objectives.alignment import misalignment
from diffusion_jax.training.step import Now
from tests.experiments.small_runs import rows

RANDOM = np.random.default_rng(0)
TOKENS, FEATURES = RANDOM.standard_normal((2, 3, 4, 5)).astype(np.float32)
SIZES = dict(width=8, depth=2, heads=2, aligned=5, aligned_depth=1, aligned_hidden=8)


def config_of(**model):
    config = digits.get_config("flow")
    config.model = base.network("dit.DiT", **SIZES | dict(patch=4) | model)
    config.repa.features, config.repa.weight = "features.npy", 0.25
    return config


def test_the_term_is_zero_where_tokens_are_parallel_to_features():
    scale = RANDOM.uniform(0.1, 9, (3, 4, 1)).astype(np.float32)
    np.testing.assert_allclose(misalignment(scale * FEATURES, FEATURES), 0, atol=1e-6)
    np.testing.assert_allclose(misalignment(-scale * FEATURES, FEATURES), 2, atol=1e-6)
    cosines = np.sum(TOKENS * FEATURES, -1) / (
        np.linalg.norm(TOKENS, axis=-1) * np.linalg.norm(FEATURES, axis=-1)
    )
    found = misalignment(TOKENS, np.float16(FEATURES))
    np.testing.assert_allclose(found, 1 - cosines.mean(1), atol=1e-3)
    assert found.dtype == jnp.float32


def test_no_gradient_reaches_the_encoder():
    total = jax.grad(lambda *both: misalignment(*both).sum(), argnums=(0, 1))
    tokens, encoder = total(TOKENS, FEATURES)
    assert not np.any(encoder) and np.abs(tokens).min(axis=(1, 2)).min() > 0
    zero, _ = total(np.zeros_like(TOKENS), FEATURES)
    assert np.isfinite(zero).all()


def test_training_adds_the_term_whose_gradient_ends_at_the_aligned_block():
    """The loss with features is that without them and 0.25 of the term. The held-out loss, whose
    batches have none, is the plain one.
    """
    experiment = assemble(config_of(), (8, 8, 1), 10)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), keys[0])
    params = jax.tree.map(lambda x: jnp.asarray(RANDOM.normal(0, 0.3, x.shape), x.dtype), shapes)
    image = jnp.asarray(RANDOM.standard_normal((3, 8, 8, 1)), jnp.float32)
    batch = {"image": image, "label": jnp.arange(3)}
    now = Now(jnp.int32(0), {}, True)
    run = experiment.kind.loss(experiment)

    def term(params):
        losses, metrics = run(params, batch | {"features": FEATURES}, keys, now)
        return metrics["misalignment"].sum(), (losses, metrics)

    (_, (losses, metrics)), grads = jax.jit(jax.value_and_grad(term, has_aux=True))(params)
    plain, own = jax.jit(lambda params: run(params, batch, keys, now))(params)
    assert set(own) == {"level"} and set(metrics) == {"level", "misalignment"}
    np.testing.assert_allclose(losses, plain + 0.25 * metrics["misalignment"], rtol=1e-4)
    reached = {name for name, own in grads.items() if any(map(np.any, jax.tree.leaves(own)))}
    assert reached == {"first", "condition", "block_0", "aligned_1", "aligned_2", "aligned_3"}


def test_the_features_of_a_file_follow_their_examples(tmp_path):
    path = str(tmp_path / "features.npy")
    np.save(path, FEATURES)
    images = np.zeros((3, 8, 8, 1), np.uint8)
    found = features.with_features(Arrays(images, np.arange(3)), path, 5)
    np.testing.assert_array_equal(found.rows(np.array([2, 0]))["features"], FEATURES[[2, 0]])
    np.testing.assert_array_equal(found[1]["features"], FEATURES[1])
    assert found.labels.tolist() == [0, 1, 2] and len(found) == 3
    captioned = CaptionedSource(Arrays(images, caption=np.zeros((3, 1))), {})
    found = features.with_features(captioned, path, 5)
    assert isinstance(found, CaptionedSource) and found.rows(np.array([1]))["features"].any()


@pytest.mark.parametrize(
    "array, words",
    [
        (FEATURES[:2], ["float32[2, 4, 5]", "[3, tokens, 5]"]),
        (FEATURES[..., :4], ["float32[3, 4, 4]", "config.model.aligned"]),
        (FEATURES.astype(int), ["int64", "floats"]),
        (np.array([None] * 3), ["is damaged"]),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, array, words):
    np.save(tmp_path / "features.npy", array)
    with pytest.raises(UserError) as error:
        source = Arrays(np.zeros((3, 8, 8, 1), np.uint8))
        features.with_features(source, str(tmp_path / "features.npy"), 5)
    for word in words:
        assert word in str(error.value)


def test_what_cannot_be_aligned_is_refused():
    config = config_of()
    config.data.flip = True
    with pytest.raises(UserError, match="config.data.flip=True: .* set --config.data.flip=False"):
        datasets.with_features(None, config)
    for model in (base.network("unet.UNet"), base.network("dit.DiT")):
        config = config_of()
        config.model = model
        with pytest.raises(UserError, match="config.repa.features=features.npy needs a diffusion"):
            assemble(config, (8, 8, 1), 10)
    with pytest.raises(UserError, match="4 vectors of 5 features .* 16 tokens of 5"):
        misalignment(jnp.zeros((3, 16, 5)), FEATURES)
    for change in (dict(aligned_depth=3), dict(scan_blocks=True)):
        with pytest.raises(UserError, match="aligned_depth="):
            module = assemble(config_of(**change), (8, 8, 1), 10).model
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))


@pytest.mark.long
def test_a_model_learns_features(tmp_path):
    """The pixels of each patch as its features: after 40 steps tokens are nearer to them."""
    config = config_of(width=24)
    dataset = datasets.dataset(config)
    image = np.float32(dataset.train.rows(np.arange(len(dataset.train)))["image"])
    patches = image.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(len(image), 4, 16)
    np.save(tmp_path / "features.npy", np.float16(patches[..., ::4] - 8))
    config.repa.features = str(tmp_path / "features.npy")
    config.model.aligned = 4
    config.training.update(steps=40, log_every=5, eval_every=40, sample_every=0)
    config.training.checkpoint_every = 40
    config.optimizer.update(learning_rate=3e-3, warmup=5)
    assert train.train(config.lock(), str(tmp_path / "run"))
    found = [row["misalignment"] for row in rows(tmp_path / "run") if "misalignment" in row]
    assert len(found) == 8 and found[-1] < 0.6 * found[0]
