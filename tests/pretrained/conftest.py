"""Fixtures of the tests of published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from diffusion_jax.assembly import workdir
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files
from diffusion_jax.studies.weights.export_weights import write_weights


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """(run, options) -> the folder that it is exported to."""

    def export(trained: Trained, **options) -> Path:
        monkeypatch.setattr(workdir, "load", lambda *args: trained)
        files.save_json(tmp_path / "run" / "provenance.json", {})
        write_weights(
            ConfigDict(trained.experiment.record),
            tmp_path / "run",
            "diffusers",
            tmp_path / "out",
            **options,
        )
        monkeypatch.undo()
        return tmp_path / "out"

    return export
