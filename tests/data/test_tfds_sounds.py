"""Sets of tensorflow-datasets with features of type Audio, read without TensorFlow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import arrays
from diffusion_jax import data
from diffusion_jax.assembly import config_files
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import describe, sound_sets, tfds_sounds
from tests.data.sets import write_tfds

LABEL = tfds.features.ClassLabel(names=["even", "odd"])


def written(folder, name="spoken", dtype=np.int64, scale=1000, rate="8000", **more):
    """A set of sounds as TFDS stores it: that of the samples, described as its Audio feature.

    The sound of number n has n + 4 samples, n * scale.
    """
    audio = tfds.features.Tensor(shape=(None,), dtype=dtype)
    make = {"audio": lambda n: np.full(n + 4, n * scale, dtype)}
    features = {"audio": audio, "label": LABEL, "caption": tfds.features.Text()}
    write_tfds(str(folder), {"train": [1, 2, 3], "test": [4]}, features, name=name, make=make)
    (file,) = (folder / name).rglob("features.json")
    known = json.loads(file.read_text())
    own = known["featuresDict"]["features"]["audio"]
    own["audio"] = own.pop("tensor") | ({"sampleRate": rate} if rate else {}) | more
    own["pythonClassName"] = tfds_sounds.AUDIO
    file.write_text(json.dumps(known))


def load(folder, length=0.001, name="spoken", **more):
    request = sound_sets.Request(length=length, **more)
    return data.load(name, data_dir=str(folder), sounds=request)


def test_samples_rate_classes_and_splits_are_those_of_the_set(tmp_path):
    written(tmp_path)
    loaded = load(tmp_path)
    own = loaded.normalization.sound
    assert (own.rate, own.length, loaded.image_shape) == (8000, 8, (8, 1))
    assert loaded.class_names == ("even", "odd") and len(loaded.test) == 1
    wanted = {n: [n * 1000] * min(n + 4, 8) + [0] * max(4 - n, 0) for n in (1, 2, 3, 4)}
    for split, numbers in ((loaded.train, (1, 2, 3)), (loaded.test, (4,))):
        rows = data.arrays(split)
        back = loaded.normalization.decode(rows["image"])[..., 0]
        order = np.argsort(back[:, 0])
        np.testing.assert_allclose(back[order], [wanted[n] for n in numbers], atol=1)
        np.testing.assert_array_equal(rows["label"][order], np.array(numbers) % 2)
    line = describe.line(loaded)
    assert "3 training and 1 test sound, 8, 1 channel" in line and "train and test" in line
    config = arrays.get_config().lock()
    keys = {"name": "spoken", "data_dir": str(tmp_path), "length": "0.004"}
    config_files.apply(config, [(f"data.{key}", value) for key, value in keys.items()])
    assert config.model.name == "unet.UNet"  # of 32 samples


def test_a_set_without_a_rate_takes_that_of_the_config(tmp_path):
    written(tmp_path, dtype=np.float32, scale=0.1, rate="")
    with pytest.raises(UserError, match="does not say its rate: set config.data.rate in Hz"):
        load(tmp_path)
    assert load(tmp_path, rate=4000).normalization.sound.length == 4


@pytest.mark.parametrize(
    "how, asked, words",
    [
        (dict(scale=10000), {}, "samples up to 40000; whole numbers of 16 bits are read"),
        (dict(dtype=np.float32), {}, "samples up to [1-4]000; numbers from -1 to 1 are read"),
        (dict(lazyDecode=True), {}, "'audio' has lazy_decode"),
        ({}, dict(length=0), "sounds of several lengths .*: set data.length=1.0"),
        ({}, dict(test_where="index=0"), "has its own classes and splits; leave config.data.patt"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(how, asked, words, tmp_path):
    written(tmp_path, **how)
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path, **asked)
    assert "\n" not in str(error.value)


def test_keys_of_sounds_are_refused_for_sets_of_images(tmp_path):
    write_tfds(str(tmp_path), {"train": [1, 2], "test": [3]})
    with pytest.raises(UserError, match="data.length=1 is not used by data.name=blobs, only by so"):
        load(tmp_path, length=1, name="blobs")


def test_a_set_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setattr(tfds_sounds, "memory", lambda: 100)
    with pytest.raises(UserError, match="GB of sounds, and at most 5e-08 GB, half of the memory,"):
        load(tmp_path)
