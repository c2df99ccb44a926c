"""Files of weights: names, safetensors, malicious pickles, folders without a network."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy as library

from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import (
    diffusers_networks,
    networks,
    safetensors,
)
from diffusion_jax.studies.weights.import_weights import fitted, to_workdir
from tests.pretrained.conversions import assembled, fixture


def test_all_tensors_that_do_not_fit_are_named():
    network, weights = networks.network("UNet2DModel"), fixture("unet")[1]
    experiment, _ = assembled("unet")
    wrong = {
        key: value
        for key, value in weights.items()
        if key not in ("conv_in.bias", "conv_out.weight")
    }
    wrong |= {"conv_in.weight": np.zeros((8, 4, 3, 3)), "class_embedding.weight": np.zeros((2, 2))}
    with pytest.raises(UserError) as error:
        fitted(network, experiment, wrong)
    message = str(error.value)
    assert "\n" not in message and message.endswith(
        "missing: conv_in.bias, conv_out.weight; left over: class_embedding.weight; "
        "of another shape: conv_in.weight [8, 4, 3, 3] for [8, 3, 3, 3]"
    )


def test_the_older_names_of_attention_are_read():
    names = [
        "mid_block.attentions.0.query.weight",
        "mid_block.attentions.0.proj_attn.bias",
        "encoder.conv_in.bias",
    ]
    assert [diffusers_networks.modern(name) for name in names] == [
        "mid_block.attentions.0.to_q.weight",
        "mid_block.attentions.0.to_out.0.bias",
        "encoder.conv_in.bias",
    ]


class Malicious:
    """A pickle of it, read by pickle itself, makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing_and_is_refused_by_name(tmp_path, zipped):
    trap = pickle.dumps({"conv_in.weight": Malicious(tmp_path / "executed")}, protocol=2)
    data = io.BytesIO()
    if zipped:
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("archive/data.pkl", trap)
    files.save_json(tmp_path / "theirs" / "config.json", fixture("unet")[0])
    (tmp_path / "theirs" / "diffusion_pytorch_model.bin").write_bytes(data.getvalue() or trap)
    with pytest.raises(UserError, match="names (posix|nt).mkdir, which is not a tensor"):
        to_workdir("diffusers", tmp_path / "theirs", tmp_path / "run")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "run").exists()
    pickle.loads(trap)  # the control: elsewhere it does run
    assert (tmp_path / "executed").exists()


def test_safetensors_of_the_library_are_read_and_ours_by_it(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.c": np.float16([1.5]),
        "empty": np.zeros((0, 2), np.int64),
        "scalar": np.array(3, np.uint8),
    }
    safetensors.save(tmp_path / "ours", tensors)
    for found in (
        library.load((tmp_path / "ours").read_bytes()),
        safetensors.load(library.save(tensors)),
    ):
        assert found.keys() == tensors.keys()
        for key, value in tensors.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)


def header(entry: dict) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "a header of 0 bytes"),
        (b"\x80\x02" * 8, "not a safetensors file"),
        (
            header({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}),
            "info.data_offsets mismatch|not fully covered|invalid",
        ),
        (header({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}), "not a safetensors file"),
        (header({"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}), "not a safetensors file"),
        (header({"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}), "unknown variant `X9`"),
    ],
)
def test_damaged_safetensors_are_refused(data, words):
    with pytest.raises(UserError, match=words):
        safetensors.load(data)


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "has no weights: neither diffusion_pytorch_model.safetensors"),
        ({"model_index.json": "{}"}, "is a pipeline that has no weights in unet/"),
        ({"model.safetensors": ""}, "model.safetensors has no config.json next to it"),
        (
            {"model.safetensors": "", "config.json": '{"_class_name": "VQModel"}'},
            "_class_name=VQModel; --from=diffusers takes",
        ),
    ],
)
def test_a_folder_without_a_network_is_refused(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        to_workdir("diffusers", tmp_path, tmp_path / "run")
