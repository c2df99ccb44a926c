"""Data sets and workdirs of strangers run no code and lead to no other data."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly import datasets, workdir
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import consent, records, tfds_builder
from diffusion_jax.report import style
from diffusion_jax.training import checkpoint
from tests import commands
from tests.data.sets import write_tfds


@pytest.fixture()
def hostile(tmp_path, monkeypatch):
    """A prepared TFDS set whose features.json names a Python class of the current folder, which
    leaves a mark when imported.
    """
    write_tfds(str(tmp_path / "data"), {"train": [1, 2, 3], "test": [2, 3]}, name="trap")
    file = tmp_path / "data" / "trap" / "1.0.0" / "features.json"
    (tmp_path / "trap_features.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # as 'python -m' has the current folder
    written = json.loads(file.read_text())
    assert written["pythonClassName"].endswith("FeaturesDict")
    written["featuresDict"]["features"]["image"]["pythonClassName"] = "trap_features.Image"
    file.write_text(json.dumps(written))
    return tmp_path


def write_eps(folder: Path) -> bytes:
    """Encapsulated PostScript that Ghostscript, which Pillow starts for it, would draw."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n("
        + str(folder / "mark").encode()
        + b") (w) file closefile\n%%EOF\n"
    )


def test_a_data_set_cannot_name_python_classes(hostile):
    with pytest.raises(UserError, match="names the Python class trap_features.Image, which is not"):
        data.load("trap", data_dir=str(hostile / "data"))
    with pytest.raises(UserError, match="names the Python class trap_features.Image"):
        records.described("trap", str(hostile / "data"), 0, 0)
    assert not (hostile / "mark").exists()


LEGACY = {
    "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "content": {"image": {"type": "trap.X", "content": {}}},
}


@pytest.mark.parametrize(
    "written, words",
    [
        (LEGACY, "trap.X"),
        (
            {"jsonFeature": {"json": json.dumps({"feature": {"pythonClassName": "trap.Y"}})}},
            "trap.Y",
        ),
        ({"json_feature": {"json": json.dumps([{"python_class_name": "os.X"}])}}, "os.X"),
        ({"jsonFeature": {"json": '{"a": '}}, "a text that is not JSON"),
        (
            {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image.."},
            "image_feature.Image..",
        ),
    ],
)
def test_class_names_are_found_wherever_tfds_looks_for_them(tmp_path, written, words):
    for folder in ("1.0.0", "config/1.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "features.json").write_text(json.dumps(written))
        with pytest.raises(UserError, match=words):
            tfds_builder.check_features("trap", tmp_path)
        (tmp_path / folder / "features.json").unlink()
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "1.0.0")
    (tmp_path / "1.0.0" / "features.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested more than 64 deep"):
        tfds_builder.check_features("trap", linked)


@pytest.mark.parametrize(
    "name",
    [
        "huggingface:trap",
        "kubric:movi_a",
        "trap/data_dir=elsewhere",
        "../trap",
        "trap/../..",
        "a/b/c",
    ],
)
def test_names_that_fetch_code_or_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot be used: write a name"):
        data.load(name, data_dir=str(tmp_path))


def test_pictures_of_a_data_set_are_opened_in_listed_formats_alone(tmp_path):

    image = tfds.features.Image(shape=(2, 2, 1), encoding_format="png")
    features = {
        "image": image,
        "other": {"image": image, "more": tfds.features.Sequence(image)},
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    eps, png = write_eps(tmp_path), io.BytesIO()
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(png, "PNG")

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in ("train", "test")}

        def _generate_examples(self):
            for i in range(2):
                hidden = {
                    "image": io.BytesIO(eps),
                    "more": [io.BytesIO(eps)],
                }  # features that are not used are not opened
                yield (
                    i,
                    {
                        "image": io.BytesIO(eps if self.name == "eps" else png.getvalue()),
                        "other": hidden,
                        "label": i,
                    },
                )

    for Writer.name in ("eps", "whole"):
        Writer(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="image [01] cannot be read .cannot identify image file"):
        data.load("eps", data_dir=str(tmp_path)).train.rows(np.arange(2))
    found = data.load("whole", data_dir=str(tmp_path)).train.rows(np.arange(2))
    assert (
        (found["image"] == 7).all()
        and found["image"].shape == (2, 2, 2, 1)
        and not (tmp_path / "mark").exists()
    )


def untrained_workdir(root: Path) -> Path:
    """A workdir with the smallest U-Net of digits, whose weights are zeros."""
    config = digits.get_config("vp").unlock()
    config.model.update(width=8, multipliers=(1,), blocks=0, attention=(), head_width=8)
    config.ema.halflives = ()
    config.sampler.ema = ""
    workdir.prepare(
        root, config.lock(), data.Dataset("digits", None, None, (8, 8, 1), 10, tuple("0123456789"))
    )
    experiment = assemble(config, (8, 8, 1), 10)
    shapes = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    with contextlib.closing(checkpoint.Checkpointer(root / "checkpoints")) as checkpoints:
        checkpoints.save(
            0, {"params": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)}, {}
        )
    return root


def strange_workdir(root: Path, **values) -> Path:
    """A workdir with the config of digits and these values of config.data."""
    config = digits.get_config().unlock()
    config.data.update(values)
    files.save_json(root / "config.json", config.to_dict())
    return root


def test_a_stored_data_path_is_not_followed_without_the_users_own_word(
    hostile, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(hostile / "home"))
    root = strange_workdir(hostile / "run", name="trap", data_dir=str(hostile / "data"))
    found = workdir.saved_config(root)
    assert found.data.data_dir == "" and found.data.name == "trap"
    written = capsys.readouterr().err
    assert (
        written.count("\n") == 1
        and f"say so once: --config.data.data_dir={hostile / 'data'}" in written
    )
    with pytest.raises(UserError, match="unknown data set 'trap'"):
        datasets.dataset(found)
    found.data.data_dir = str(
        hostile / "data"
    )  # the user repeats it: still no class of the current folder is imported
    with pytest.raises(UserError, match="names the Python class trap_features.Image"):
        datasets.dataset(found)
    assert not (hostile / "mark").exists()


def test_the_data_of_the_users_own_runs_are_found_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = digits.get_config().unlock()
    config.data.update(path=str(tmp_path / "images"), data_dir="~/sets", captions="words.json")
    monkeypatch.chdir(tmp_path)
    unseen = data.Dataset("folder", None, None, (8, 8, 1), 2, ("a", "b"))
    workdir.prepare(tmp_path / "run", config.lock(), unseen)
    assert (
        workdir.saved_config(tmp_path / "run").data == config.data and capsys.readouterr().err == ""
    )
    for key in consent.KEYS:
        moved = strange_workdir(tmp_path / "other", **{key: f"/somewhere/{key}"})
        assert (
            workdir.saved_config(moved).data[key] == ""
            and f"data.{key}=/somewhere/{key}" in capsys.readouterr().err
        )


LONG = [
    pytest.param(name, marks=pytest.mark.long)
    for name in ("evaluate", "likelihood", "compare_samplers", "edit")
]


@pytest.mark.parametrize("command", ["statistics", *LONG])
def test_commands_on_a_strangers_workdir_run_nothing_of_it(command, hostile):
    """Each runs in the folder that holds the stranger's Python file, and ends with one line."""
    root = untrained_workdir(hostile / "run")
    written = json.loads((root / "config.json").read_text())
    written["data"] |= {"name": "trap", "data_dir": str(hostile / "data")}
    files.save_json(root / "config.json", written)
    more = ["--out=x.npz"] if command == "statistics" else []
    for word in ([], [f"--config.data.data_dir={hostile / 'data'}"]):
        done = commands.run(command, f"--workdir={root}", *more, *word)
        assert done.returncode == 2 and not (hostile / "mark").exists(), done.stderr
        assert (
            "Traceback" not in done.stderr
            and ("trap_features.Image" if word else "unknown data set 'trap'") in done.stderr
        )


def test_a_name_with_dollars_is_no_formula(tmp_path):
    with style.figure(tmp_path / "a.png", 1) as axes:
        axes[0].set(title=r"$\frac$ and $x^$")
    assert (tmp_path / "a.png").is_file()


def test_a_pipe_in_a_data_set_is_refused_where_tfds_would_wait(tmp_path):
    write_tfds(str(tmp_path), {"train": [1], "test": [2]}, name="piped")
    for name in ("dataset_info.json", "features.json"):
        file = tmp_path / "piped" / "1.0.0" / name
        whole = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match="is not a regular file"):
            data.load("piped", data_dir=str(tmp_path))
        file.unlink()
        file.write_bytes(whole)
    assert len(data.load("piped", data_dir=str(tmp_path)).train) == 1
