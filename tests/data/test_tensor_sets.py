"""Sets of tensorflow-datasets whose samples are tensors of numbers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import arrays
from diffusion_jax import data
from diffusion_jax.assembly import config_files
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import tensor_sets
from tests.data.sets import write_tfds

SIGNAL = tfds.features.Tensor(shape=(4, 2), dtype=np.float32)


def test_a_set_of_tensors_is_normalized_and_chooses_its_network(tmp_path):
    label = tfds.features.ClassLabel(names=["even", "odd"])
    write_tfds(
        str(tmp_path),
        {"train": [1, 2, 3, 6], "test": [5, 8]},
        features={"signal": SIGNAL, "label": label, "caption": tfds.features.Text()},
        name="signals",
    )
    loaded = data.load("signals", data_dir=str(tmp_path))
    assert loaded.image_shape == (4, 2) and loaded.class_names == ("even", "odd")
    train, test = data.arrays(loaded.train), data.arrays(loaded.test)
    np.testing.assert_allclose(train["image"].std((0, 1)), 1, rtol=1e-5)
    wanted = np.arange(8).reshape(4, 2)
    for rows, numbers in ((train, [1, 2, 3, 6]), (test, [5, 8])):
        order = np.argsort(rows["image"][:, 0, 0])  # TFDS shuffles
        decoded = loaded.normalization.decode(rows["image"][order])
        np.testing.assert_allclose(decoded, [n + wanted for n in numbers], rtol=1e-5)
        np.testing.assert_array_equal(rows["label"][order], np.array(numbers) % 2)
    config = arrays.get_config().lock()
    named = [("data.name", "signals"), ("data.data_dir", str(tmp_path))]
    config_files.apply(config, named)
    assert config.model.name == "unet.UNet" and config.data.name == "signals"
    with pytest.raises(UserError, match="signals has no images: leave data.image_size"):
        data.load("signals", data_dir=str(tmp_path), image_size=8)
    for name in ("digits", "folder"):  # of images, and unknown to TFDS
        with pytest.raises(UserError, match=f"config.data.name={name}: this config reads arrays"):
            config_files.apply(arrays.get_config().lock(), [("data.name", name), named[1]])


@pytest.mark.parametrize(
    "features, words",
    [
        ({"a": SIGNAL, "b": SIGNAL}, "several tensors (a, b)"),
        ({"label": tfds.features.ClassLabel(num_classes=2)}, "no tensor of numbers"),
        ({"a": tfds.features.Tensor(shape=(None, 2), dtype=np.float32)}, "float32 (any, 2)"),
        ({"a": tfds.features.Tensor(shape=(4,), dtype=np.float64)}, "'a' is float64 (4)"),
        ({"a": tfds.features.Scalar(dtype=np.float32)}, "no tensor of numbers"),
    ],
)
def test_other_sets_are_refused_in_one_line(features, words):
    with pytest.raises(UserError) as error:
        tensor_sets.feature_of("mine", features)
    assert words in str(error.value) and "\n" not in str(error.value)
