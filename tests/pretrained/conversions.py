"""Published networks of the fixtures, for the tests of conversions."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.pretrained import (
    networks,
    published,
)
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
    experiment = assemble(config, shape)
    return experiment, fitted(network, experiment, weights)
