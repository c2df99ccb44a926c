"""Values of flags, and config files that fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusion_jax.assembly import config_files, outputs
from diffusion_jax.core import files, parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.few_step import methods


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "import nonexistent_module",
            "line 1: ModuleNotFoundError: No module named 'nonexistent_module'",
        ),
        ("\n1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config(variant='a'):\n  return missing", "line 2: NameError"),
    ],
)
def test_a_config_file_that_raises_is_one_line(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        config_files.load_config(f"{tmp_path}/mine.py:b")


@pytest.mark.parametrize(
    "text, written",
    [
        ("cfg1.5", "cfg1.5.npz"),
        ("a/cfg1.0", "a/cfg1.0.npz"),
        ("run.v2", "run.v2.npz"),
        ("a.npz", "a.npz"),
        ("a.NPZ", "a.npz"),
        ("a", "a.npz"),
        ("1.npz.npz", "1.npz.npz"),
        ("", "kept/name.1.npz"),
    ],
)
def test_out_keeps_its_dots_and_takes_its_own_ending(text, written):
    found = parsing.output("out", text, ".npz", ".png", default="kept/name.1")
    assert found == {".npz": Path(written), ".png": Path(written).with_suffix(".png")}


@pytest.mark.parametrize("text", ["a.jpg", "a.json", "a.zip", "a.PDF", "a.npy", "folder/", "."])
def test_out_of_another_format_and_a_folder_are_refused(text):
    with pytest.raises(UserError, match="--out="):
        parsing.output("out", text, ".npz", ".png")


def test_out_is_no_device():
    with pytest.raises(UserError, match="--out=/dev/null is a device or a pipe"):
        parsing.output("out", "/dev/null", ".npz")


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for out in ("file/a", "new/" + "a" * 240, "n" * 256 + "/a"):
        with pytest.raises(UserError, match="cannot write '.*; (choose a folder|use a shorter)"):
            outputs.named("out", str(tmp_path / out), ".npz")
    with pytest.raises(UserError, match="cannot write '.*a.json': Not a directory"):
        outputs.folder("out", tmp_path / "file" / "sub", "a.json")
    found = outputs.named("out", str(tmp_path / "new" / ("a" * 230)), ".npz")[".npz"]
    assert os.listdir(tmp_path) == ["file"]  # the trial leaves nothing behind
    files.save_json(found, {})


def test_a_folder_to_write_to_is_no_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; name a folder"):
        parsing.folder("out", tmp_path / "file")


def test_lists_of_numbers_paths_and_scores():
    assert parsing.integers("nfe", "5,10", 1, 10) == [5, 10] and parsing.integers("nfe", "") == []
    assert parsing.paths("others", "~/a, b") == [os.path.expanduser("~/a"), "b"]
    assert parsing.metrics("fd, kid,precision,recall") == ["frechet", "kid", "prdc"]
    for text in ("a", "5,", "11", "0", "9" * 400):
        with pytest.raises(UserError, match="--nfe="):
            parsing.integers("nfe", text, 1, 10)
    for text in ("nan", "inf", "-1", "a", ""):
        with pytest.raises(UserError, match="--scales="):
            parsing.numbers("scales", text, 0, 1000)


@pytest.mark.parametrize(
    "text, specs",
    [
        ("ddim, heun@karras", ["ddim", "heun@karras"]),
        ("sde.sa(order=3, tau=(1, 0)); ddim;", ["sde.sa(order=3, tau=(1, 0))", "ddim"]),
        ("gmm('a,b;c'), x", ["gmm('a,b;c')", "x"]),
        (" , ;", []),
    ],
)
def test_specs_are_separated_by_semicolons_or_by_commas_outside_of_brackets(text, specs):
    assert parsing.specs(text) == specs


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sampler": "foo"}, "unknown sampler 'foo'"),
        ({"sampler": "ddim@karass"}, "did you mean 'karras'"),
        ({"methods": ["cdd"]}, "did you mean 'cd'"),
        ({"budgets": [50]}, "--nfe is empty"),
        ({"features": "pixel"}, "unknown features 'pixel'; did you mean 'pixels'"),
    ],
)
def test_few_step_checks_names_before_it_trains(change, said):
    given = {
        "recipe": "configs/digits_few_step.py",
        "methods": ["cd"],
        "size": "",
        "sampler": "ddim",
        "budgets": [1, 50],
        "features": "",
    }
    methods.check_names(*given.values())
    with pytest.raises(UserError, match=said):
        methods.check_names(*(given | change).values())
