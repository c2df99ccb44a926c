"""An export that fails leaves the folder as it was."""

from __future__ import annotations

import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.weights import export_weights


def export(target, text):
    with export_weights._whole(target) as folder:
        for name in ("config.json", "unet/model.safetensors"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        if text == "failed":
            raise KeyError


def test_all_files_are_written_or_none(tmp_path):
    target = tmp_path / "runs" / "out"
    with pytest.raises(KeyError):
        export(target, "failed")
    assert not target.exists()
    export(target, "old")
    (target / "README.md").write_text("mine")
    with pytest.raises(KeyError):
        export(target, "failed")
    assert (target / "config.json").read_text() == "old"
    export(target, "new")
    assert (target / "unet" / "model.safetensors").read_text() == "new"
    assert (target / "README.md").read_text() == "mine"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert {path.name for path in target.iterdir()} == {"config.json", "unet", "README.md"}


def test_files_stay_on_the_file_system_of_the_folder(tmp_path, monkeypatch):
    """A folder that is there may be a mounted one, into which nothing can be renamed."""
    moved, replace = [], export_weights.os.replace

    def watched(source, place):
        moved.append(source.is_relative_to(tmp_path / "out"))
        replace(source, place)

    monkeypatch.setattr(export_weights.os, "replace", watched)
    (tmp_path / "out").mkdir()
    export(tmp_path / "out", "new")
    assert moved == [True, True]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file; name a folder"):
        export(tmp_path / "file", "new")
