"""An export takes the place of an earlier export, and of nothing else."""

from __future__ import annotations

import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.weights import export_weights


def export(target, text="new"):
    with export_weights._replacing(target) as folder:
        for name in ("config.json", "unet/model.safetensors"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def test_an_export_replaces_an_export_as_a_whole(tmp_path):
    target = tmp_path / "out"
    export(target, "old")
    with pytest.raises(KeyError), export_weights._replacing(target) as folder:
        (folder / "config.json").write_text("half")
        raise KeyError
    assert (target / "config.json").read_text() == "old"
    export(target)
    assert (target / "unet" / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_others_stay(tmp_path):
    (tmp_path / "theirs" / "vae").mkdir(parents=True)
    (tmp_path / "theirs" / "vae" / "config.json").write_text("theirs")
    with pytest.raises(UserError, match="has 'vae/config.json', which this export does not write"):
        export(tmp_path / "theirs")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file; name a folder"):
        export(tmp_path / "file")
    assert (tmp_path / "theirs" / "vae" / "config.json").read_text() == "theirs"
    assert (tmp_path / "file").read_text() == "mine"
