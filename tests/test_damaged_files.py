"""JSON files, configs and statistics that were edited or damaged by hand.

One schema reads each of them, and one line says what is wrong.
"""

from __future__ import annotations

import io
import itertools
import json
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from configs import digits
from diffusion_jax.assembly import data_record, workdir
from diffusion_jax.core import files, npz, provenance, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import frechet, statistics
from diffusion_jax.planning import stored_cards
from diffusion_jax.planning import words as card_words
from diffusion_jax.samplers import grid_files
from diffusion_jax.studies.grids import file as grid_file
from diffusion_jax.studies.grids import report
from diffusion_jax.training import forensics
from tests.spoiled import CARD, DATA, GRID, PLACED, REPORT, spoiled, variations


def placed(path: Path) -> None:
    settings = {key: PLACED[key] for key in ("sampler", "starts", "num")}
    table = grid_file.open_grids(path, settings)
    if not table.rows:
        raise UserError("all is made again")
    with (
        mock.patch("diffusion_jax.core.files.save_text"),
        mock.patch("diffusion_jax.report.quality.placed_times"),
    ):
        report.write(table.content, "times", path)


READERS = {  # what is on disk, and what is done with what is read
    "grid": (
        GRID,
        lambda path: (
            reading.json_file(path, grid_files.FILE)["logsnr"]["3"][0] + 1.0
            if "3" in reading.json_file(path, grid_files.FILE)["logsnr"]
            else None
        ),
    ),
    "placed grids": (PLACED, placed),
    "data.json": (DATA, lambda path: workdir.about_data(path.parent)),
    "report of a step": (
        REPORT,
        lambda path: forensics._text(reading.json_file(path, forensics.rule)),
    ),
    "card": (CARD, lambda path: card_words.describe(reading.json_file(path, stored_cards.rule))),
}


@pytest.mark.parametrize("name", READERS)
def test_an_edited_json_file_is_refused_in_one_line_or_serves(name, tmp_path):
    value, use = READERS[name]
    path, refused = tmp_path / "data.json", 0
    path.write_text(json.dumps(value))
    use(path)  # the control
    for other in itertools.islice(variations(value), 0, None, 2):
        path.write_text(json.dumps(other))
        try:
            use(path)
        except UserError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
            refused += 1
    assert refused > 25


def test_any_file_in_the_place_of_json_is_refused_at_once(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(DATA))
    for _ in spoiled(path):
        with pytest.raises(UserError) as refused:
            workdir.about_data(tmp_path)
        assert "\n" not in str(refused.value) and "data.json" in str(refused.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot read .*directory"):
        workdir.about_data(tmp_path)


def test_rules_name_the_place_the_value_and_what_is_allowed(tmp_path):
    path = tmp_path / "data.json"
    for change, words in (
        ({"image_shape": [10**6, 10**6, 1]}, "image_shape has 1,000,000,000,000 numbers, more"),
        ({"image_shape": [8, "x", 1]}, r'image_shape\[1\] is "x", and must be a whole number'),
        ({"class_names": ["a"]}, "has 1 class_names for num_classes=2"),
        ({"encoded": {"shift": []}}, "encoded lacks autoencoder, image_shape"),
    ):
        path.write_text(json.dumps(DATA | change))
        with pytest.raises(UserError, match=words):
            workdir.about_data(tmp_path)


SOUND = {"rate": 8, "length": 4, "channels": 1, "kind": "waveform", "fields": [["a", ["x", "y"]]]}
SOUND |= {"mels": 0, "window": 0, "hop": 0}
MEASURED = {"shift": [0], "scale": [1], "low": [0], "high": [1], "dtype": "int16", "sound": SOUND}
OF_SOUNDS = {"image_shape": [4, 1], "num_classes": 2, "normalization": MEASURED}


@pytest.mark.parametrize(
    "about, own, sound, words",
    [
        ({"image_shape": [4, 2]}, {}, {}, r"have \[1, 2\] channels"),
        ({}, {"shift": [0, 0]}, {}, r"have \[1, 2\] channels"),
        ({"image_shape": [5, 1]}, {}, {}, r"the shape \(4, 1\), not \[5, 1\]"),
        ({"num_classes": 3}, {}, {}, "not those of 3 classes"),
        ({}, {}, {"fields": [["a", "xy"]]}, "not those of 2 classes"),
        ({}, {}, {"kind": "logmel"}, "logmel"),
    ],
)
def test_parts_of_data_json_fit_each_other(about, own, sound, words):
    known = data_record.normalization(OF_SOUNDS | {"normalization": MEASURED | {"later": 1}})
    assert known.sound.shape == (4, 1)
    normalization = MEASURED | own | {"sound": SOUND | sound}
    with pytest.raises(UserError, match=words):
        data_record.normalization(OF_SOUNDS | {"normalization": normalization} | about)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": [{"a": {}, "a": {}}]}'])
def test_a_key_that_is_given_twice_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json' is not valid JSON .the key 'a' is given twice"):
        reading.json_file(tmp_path / "x.json")


def test_an_archive_with_two_arrays_of_one_name_is_refused(tmp_path):
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(tmp_path / "x.npz", "w") as archive,
    ):
        for _ in range(2):
            archive.writestr("x.npy", content.getvalue())
    with pytest.raises(UserError, match="two arrays of one name"):
        npz.load(tmp_path / "x.npz", {"x": npz.ArraySpec("f")})


def test_a_note_tells_of_a_config_that_was_edited(tmp_path, capsys):

    value = json.loads(files.canonical_json(digits.get_config().to_dict()))
    files.save_json(tmp_path / "config.json", value)
    files.save_json(tmp_path / "provenance.json", provenance.provenance(value))
    workdir.saved_config(tmp_path)
    assert not capsys.readouterr().err
    files.save_json(tmp_path / "config.json", value | {"parameterization": "v()"})
    workdir.saved_config(tmp_path)
    assert "config.json' was edited after the run wrote it" in capsys.readouterr().err


def test_an_edited_config_is_refused_in_one_line(tmp_path, monkeypatch, capsys):

    monkeypatch.setenv("HOME", str(tmp_path))
    value = digits.get_config().to_dict()
    path, refused = tmp_path / "config.json", 0
    value = json.loads(files.canonical_json(value))
    for other in itertools.islice(variations(value), 0, None, 3):  # (about 900 in all)
        path.write_text(json.dumps(other))
        try:
            workdir.saved_config(tmp_path)
        except UserError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
            refused += 1
        assert "\x1b" not in capsys.readouterr().err
    assert refused > 150
    path.write_text(json.dumps(value))
    for _ in spoiled(path):
        with pytest.raises(UserError) as error:
            workdir.saved_config(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"cov": np.diag([1.0, -1.0])},
        {"cov": np.array([[1.0, 2.0], [2.0, 1.0]])},
        {"cov": np.array([[1.0, 0.5], [0.0, 1.0]])},
        {"cov": np.eye(3)},
        {"cov": np.full((2, 2), np.nan)},
        {"mean": np.array([np.inf, 0.0])},
        {"count": np.array(-4)},
        {"count": np.array(2.5)},
        {"of": np.array("[]")},
        {"of": np.array('{"extractor": "pixels"}')},
        {"of": np.array({}, object)},
    ],
    ids=str,
)
def test_statistics_that_are_none_are_refused_though_their_hash_is_right(change, tmp_path):
    of = {
        "extractor": "pixels",
        "digest": "",
        "resize": None,
        "data": "digits",
        "split": "train",
        "image_shape": [1, 2, 1],
        "count": 9,
        "data_digest": "ab",
    }
    made = statistics.Statistics(frechet.Moments(9, np.zeros(2), np.eye(2)), of)
    statistics.save(tmp_path / "a.npz", made)
    assert statistics.load(tmp_path / "a.npz").of == of
    with np.load(tmp_path / "a.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "hash"} | change
    np.savez(tmp_path / "a.npz", **arrays, hash=statistics._hash(arrays))
    with pytest.raises(UserError, match="make it again with experiments.statistics"):
        statistics.load(tmp_path / "a.npz")
