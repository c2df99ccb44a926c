"""DINOv2 and CLIP: equal to the original programs, read from four kinds of files, refused in one
line where a file is another network.

tests/fixtures/make_vit_fixtures.py made vit.npz: what the original programs make of two pictures
with parameters that depend on their names alone, which this file makes again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import choice, features, judge
from diffusion_jax.pretrained import download, resizing, safetensors, vit, vit_files, weights
from diffusion_jax.pretrained.weights import WeightsFile
from tests.fixtures import make_vit_fixtures as made
from tests.pretrained.test_extractors import CONTENTS, Global, tensor, zipped
from tests.pretrained.test_hostile_weights import ATTACKS

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"width": made.WIDTH, "depth": made.DEPTH, "heads": made.HEADS, "patch": made.PATCH}
DINOV2 = vit.DINOV2_L._replace(size=made.SIZE, trained_size=made.SIZE, **SMALL)
CLIP = vit.CLIP_L_336._replace(
    size=made.SIZE, trained_size=made.SIZE, projection=made.PROJECTION, **SMALL
)
NETWORKS = {
    "dinov2": DINOV2._replace(trained_size=made.LARGER),
    "dinov2_registers": DINOV2._replace(trained_size=made.LARGER, registers=4),
    "hugging_face_dinov2": DINOV2,
    "hugging_face_dinov2_registers": DINOV2._replace(trained_size=made.LARGER, registers=4),
    "openai_clip": CLIP,
    "hugging_face_clip": CLIP,
}


@functools.cache
def fixture(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a file, and the features that the original program makes of the pictures."""
    with np.load(FIXTURES / "vit.npz") as file:
        shapes, found = json.loads(str(file[f"{name}/shapes"])), file[f"{name}/features"]
    return {key: made.random_parameter(key, tuple(shape)) for key, shape in shapes.items()}, found


# ---- networks ----
@pytest.mark.parametrize("name", NETWORKS)
def test_a_transformer_equals_the_original_program_from_pixels_to_features(name):
    tensors, expected = fixture(name)
    params = vit_files.convert(NETWORKS[name], tensors)
    assert {key: value.shape for key, value in params.items()} == vit.shapes(NETWORKS[name])
    found, logits = vit.forward(NETWORKS[name], made.pictures(), params)
    # the parameters do not hide the pictures
    assert logits is None and np.abs(expected[0] - expected[1]).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers"])
def test_the_features_of_patches_equal_the_original_program(name):
    params = vit_files.convert(NETWORKS[name], fixture(name)[0])
    found = vit.patch_features(NETWORKS[name], made.pictures(), params)
    with np.load(FIXTURES / "vit_patches.npz") as file:
        np.testing.assert_allclose(found, file[name], atol=5e-5)
    assert found.shape == (2, (made.SIZE // made.PATCH) ** 2, made.WIDTH)


def test_the_published_networks_have_the_published_numbers_of_parameters():
    """Of the papers and of the files: 86.6 M and 304.4 M without the mask token, 304.3 M."""

    def count(network: vit.Vit) -> int:
        return sum(int(np.prod(shape)) for shape in vit.shapes(network).values())

    assert count(vit.DINOV2_B) == 86_580_480 - 768
    assert count(vit.DINOV2_L) == 304_368_640 - 1024
    assert count(vit.CLIP_L_336) == 304_293_888
    assert count(vit.DINOV2_B_REG) - count(vit.DINOV2_B) == 4 * 768
    assert count(vit.DINOV2_L_REG) - count(vit.DINOV2_L) == 4 * 1024


@pytest.mark.parametrize("shape, target", [((5, 7), 16), ((16, 16), 16), ((61, 40), 16)])
def test_the_resize_is_pillows_bit_for_bit(shape, target):
    rng = np.random.default_rng(0)
    images = np.uint8(255 * (rng.random((2, *shape, 3)) > 0.5))  # noise that overshoots
    images[1] = rng.integers(0, 256, (*shape, 3))
    expected = [
        np.asarray(Image.fromarray(image).resize((target, target), Image.BICUBIC))
        for image in images
    ]
    np.testing.assert_array_equal(resizing.bicubic(images, target), expected)


def test_the_center_square_is_cut_at_the_smaller_margin():
    columns = np.broadcast_to(np.arange(8)[None, None, :, None], (1, 5, 8, 1))
    assert resizing.center_square(columns)[0, 0, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert resizing.center_square(columns.transpose(0, 2, 1, 3)).shape == (1, 5, 5, 1)


# ---- files ----
def torch_file(tensors: dict[str, np.ndarray], monkeypatch) -> bytes:
    """The bytes that torch.save writes of these tensors."""
    state = {}
    for number, (name, value) in enumerate(tensors.items()):
        monkeypatch.setitem(CONTENTS, str(number), value)
        strides = tuple(step // value.itemsize for step in value.strides)
        reference = tensor(str(number), "FloatStorage", 0, value.shape, strides)
        storage = (*reference.args[0][:4], value.size)
        kind = type(reference.args[0])
        state[name] = Global(reference.module, reference.name, (kind(storage), *reference.args[1:]))
    return zipped(state)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, and small networks in the places of the published ones."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, network in (("dinov2_vitl14", NETWORKS["dinov2"]), ("clip_vitl14_336", CLIP)):
        entry = WeightsFile(network, f"https://example.org/{name}.pth", "0" * 64, name)
        monkeypatch.setitem(weights.FILES, name, entry)
    return tmp_path


def test_features_come_from_a_torch_file_whose_digest_is_known(home, monkeypatch, capsys):
    tensors, expected = fixture("dinov2")
    file = home / "dinov2.pth"
    file.write_bytes(torch_file(tensors, monkeypatch))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="not here.*download https.*dinov2_vitl14 --from=FILE"):
        features.extractor("dinov2_vitl14")
    with pytest.raises(UserError, match="not on the package index; download https"):
        download.get_weights("dinov2_vitl14")
    path = download.get_weights("dinov2_vitl14", str(file))
    assert f"its sha256 is {digest}; the names" in capsys.readouterr().err
    extractor = features.extractor("dinov2_vitl14")
    found = extractor.features(made.pictures())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    gray = made.pictures()[..., :1]
    np.testing.assert_array_equal(
        extractor.features(gray), extractor.features(np.repeat(gray, 3, -1))
    )
    entry = weights.FILES["dinov2_vitl14"]
    monkeypatch.setitem(weights.FILES, "dinov2_vitl14", entry._replace(sha256=digest))
    download.get_weights("dinov2_vitl14", str(file))
    assert capsys.readouterr().err == ""
    assert features.extractor("dinov2_vitl14").digest == extractor.digest
    other = npz.load(path, {}, lambda _: npz.ArraySpec("f"))
    npz.save(path, other | {"norm.bias": other["norm.bias"] + 1})
    assert features.extractor("dinov2_vitl14").digest != extractor.digest
    npz.save(path, other | {"norm.bias": other["norm.bias"][:3]})
    with pytest.raises(UserError, match="norm.bias is float32.*--from=FILE"):
        features.extractor("dinov2_vitl14")


def test_features_come_from_a_safetensors_file_in_half_precision_with_a_text_encoder(home):
    tensors, expected = fixture("hugging_face_clip")
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    half |= {"text_model.final_layer_norm.bias": np.ones(7), "logit_scale": np.ones(())}
    safetensors.save(home / "clip.safetensors", half)
    download.get_weights("clip_vitl14_336", str(home / "clip.safetensors"))
    found = features.extractor("clip_vitl14_336").features(made.pictures())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_every_metric_of_features_is_measured_on_those_of_the_transformers(home, monkeypatch):
    for name, kind in (("dinov2_vitl14", "dinov2"), ("clip_vitl14_336", "openai_clip")):
        params = vit_files.convert(weights.FILES[name].vit, fixture(kind)[0])
        npz.save(weights._path(name, None), params)
    rng = np.random.default_rng(0)
    bright = rng.integers(40, 256, (24, 8, 8, 3), np.uint8)
    dark = rng.integers(0, 140, (24, 8, 8, 3), np.uint8)
    names, metrics = choice.resolve_names([], ["fd_dinov2", "cmmd", "prdc", "kid"])
    judged = judge.against(Arrays(bright), None, features=names, metrics=metrics)
    assert judged.title("frechet/dinov2_vitl14") == "FD-DINOv2 (dinov2_vitl14)"
    equal, other = judged(bright), judged(dark)
    for name in names:
        assert equal[f"precision/{name}"] == equal[f"recall/{name}"] == 1
        assert other[f"precision/{name}"] < 0.5 and other[f"recall/{name}"] < 0.5
        for metric in ("frechet", "kid", "cmmd"):
            assert equal[f"{metric}/{name}"] < 0.1 * other[f"{metric}/{name}"]


def spoiled(tensors, **changes):
    """The tensors with some changed; None removes one."""
    return {k: v for k, v in (tensors | changes).items() if v is not None}


CHANGES = {
    "a tensor that is missing": ({"norm.bias": None}, "missing: 'norm.bias'"),
    "a tensor too many": ({"blocks.2.norm1.bias": np.ones(32)}, "left over: 'blocks.2.norm1.bias'"),
    "another shape": ({"norm.bias": np.ones(31)}, r"norm.bias \[31\] instead of \[32\]"),
    "axes that are exchanged": (
        {"blocks.1.mlp.fc1.weight": np.ones((32, 128))},
        r"blocks.1.mlp.fc1.weight \[32, 128\] instead of \[128, 32\]",
    ),
    "an empty tensor": ({"pos_embed": np.ones((1, 0, 32))}, r"pos_embed \[1, 0, 32\] instead"),
    "integers": ({"norm.bias": np.ones(32, int)}, "norm.bias is of type int64"),
    "NaN": ({"norm.bias": np.full(32, np.nan)}, "norm.bias has values that are not finite"),
    "numbers beyond float32": ({"norm.bias": np.full(32, 1e300)}, "that are not finite"),
    "no class token": ({"cls_token": None}, "must have a tensor cls_token or embeddings.cls_token"),
    "registers": (
        {"register_tokens": np.ones((1, 4, 32))},
        "left over: 'register_tokens'; for a network with registers name dinov2_vitb14_reg or",
    ),
    "names of two publishers": ({"embeddings.cls_token": np.ones(32)}, "has 2 of them"),
    "a name of two lines": ({"x\ny": np.ones(1)}, r"left over: 'x\\ny'"),
    "a long name": ({"x" * 10_000: np.ones(1)}, "left over: 'x{100}'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_another_network_is_refused_in_one_line_and_nothing_is_written(change, home):
    changes, said = CHANGES[change]
    file = home / "spoiled.safetensors"
    safetensors.save(file, spoiled(fixture("dinov2")[0], **changes))
    with pytest.raises(UserError, match=said) as refused:
        download.get_weights("dinov2_vitl14", str(file))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert not (home / "home").exists()


def test_a_file_that_calls_or_never_ends_is_refused(home):
    file = home / "hostile.pth"
    file.write_bytes(zipped({"cls_token": Global("os", "mkdir", (str(home / "mark"),))}))
    with pytest.raises(UserError, match="names os.mkdir, which is not a tensor"):
        download.get_weights("dinov2_vitl14", str(file))
    assert not (home / "mark").exists()
    for attack, value in ATTACKS.items():
        file.write_bytes(zipped({"cls_token": value}))
        with pytest.raises(UserError) as refused:
            download.get_weights("dinov2_vitl14", str(file))
            pytest.fail(attack)
        assert "\n" not in str(refused.value)
    assert not (home / "home").exists()
    os.mkfifo(home / "pipe.pth")
    with pytest.raises(UserError, match="not a regular file"):
        download.get_weights("dinov2_vitl14", str(home / "pipe.pth"))
