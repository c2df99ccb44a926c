"""Metrics of arrays that are not images: on their normalized values."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import choice, features, judge, points


def drawn(seed, *shape, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, shape).astype(np.float32)


def test_values_are_means_over_boxes_of_at_most_a_thousand_numbers():
    few = drawn(0, 3, 10, 2)
    np.testing.assert_array_equal(features.values(few), few.reshape(3, -1))
    volume = drawn(0, 2, 20, 20, 20, 1)  # boxes of 2 x 2 x 2
    boxes = volume.reshape(2, 10, 2, 10, 2, 10, 2).mean((2, 4, 6))
    np.testing.assert_allclose(features.values(volume), boxes.reshape(2, -1), atol=1e-5)
    odd = features.values(drawn(0, 2, 1001, 1))
    assert odd.shape == (2, 501)
    np.testing.assert_allclose(odd[:, -1], drawn(0, 2, 1001, 1)[:, -1, 0])


def test_the_metrics_of_arrays_are_those_of_their_values():
    """By default, with labels as well; the distances are those of points.py."""
    train = Arrays(drawn(0, 60, 4, 2), np.arange(60) % 2)
    labels = np.arange(20) % 2
    judged = judge.against(train, labels)
    x = drawn(1, 20, 4, 2, shift=0.5)
    found = judged(x)
    assert set(found) == {"accuracy", "frechet", "mmd_median", "sliced_wasserstein"}
    flat, real = x.reshape(20, -1), train.columns["image"].reshape(60, -1)
    assert found["sliced_wasserstein"] == points.sliced_wasserstein(flat, real)
    assert found["mmd_median"] == points.mmd(flat, real)
    near = judged(drawn(2, 20, 4, 2))
    assert near["frechet"] < found["frechet"] and near["mmd_median"] < found["mmd_median"]
    assert judged.title("frechet") == "Fréchet distance of values"
    assert judged.title("mmd_median") == "MMD, median width"


def test_the_recognizer_reads_arrays_of_any_shape():
    labels = np.arange(60) % 3
    x = drawn(0, 60, 5, 1) / 10 + labels[:, None, None].astype("f")
    judged = judge.against(Arrays(x, labels), labels[:9], metrics=["accuracy"])
    assert judged(x[:9])["accuracy"] == 1 and judged(x[1:10])["accuracy"] == 0


def test_features_of_images_are_refused_for_arrays_and_the_reverse():
    arrays, images = Arrays(drawn(0, 9, 4, 2)), Arrays(np.zeros((9, 4, 4, 1), np.uint8))
    with pytest.raises(UserError, match="--features=pixels .* are arrays; use --features=values"):
        choice.choose(arrays, None, features=["pixels"])
    with pytest.raises(UserError, match="--features=values .* are images; use --features=pixels"):
        choice.choose(images, None, features=["values"])
