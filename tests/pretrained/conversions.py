"""Published networks of the fixtures, for the tests of conversions."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import files
from diffusion_jax.assembly import experiment, workdir
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.pretrained import (
    networks,
    published,
)
from diffusion_jax.studies.export_weights import write_weights
from diffusion_jax.studies.import_weights import fitted, run_config

FIXTURES = Path(__file__).parents[1] / "fixtures"


NAMES = {"unet": "UNet2DModel", "unet_default": "UNet2DModel", "autoencoder_kl": "AutoencoderKL"}


@functools.cache
def fixture(name: str) -> tuple[dict, dict, dict]:
    """(config.json, weights, inputs and outputs)."""
    with np.load(FIXTURES / f"{name}.npz") as saved:
        arrays = {key: value for key, value in saved.items() if key != "config"}
        weights = {key: value for key, value in arrays.items() if "." in key}
        return (
            json.loads(str(saved["config"])),
            weights,
            {key: arrays[key] for key in arrays.keys() - weights.keys()},
        )


def assembled(name: str):
    """The experiment that a fixture becomes, and its parameters; no file is written."""
    config, weights, _ = fixture(name)
    network = networks.network(NAMES[name])
    options, shape = published.read_config(network, config)
    config = run_config(network, options, shape, options.pop("num_classes"), {}, "folder")
    built = experiment.assemble(config, shape)
    return built, fitted(network, built, weights)


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """(run, options) -> the folder that it is exported to."""

    def export(trained: Trained, **options) -> Path:
        monkeypatch.setattr(workdir, "load", lambda *args: trained)
        files.save_json(tmp_path / "run" / "provenance.json", {})
        write_weights(
            trained.experiment.config, tmp_path / "run", "diffusers", tmp_path / "out", **options
        )
        monkeypatch.undo()
        return tmp_path / "out"

    return export
