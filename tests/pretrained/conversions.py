"""Published networks of the fixtures, for the tests of conversions."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.pretrained import (
    layouts,
    networks,
    published,
)
from diffusion_jax.studies.weights.import_weights import Found, fitted, run_config
from tests.models.networks import shapes

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


def converted(found: Found):
    """The network that a file becomes and its parameters, which go back to the same tensors."""
    network, options = networks.network(found.name), dict(found.options)
    module = build(components.MODELS, network.model, **options)
    more, size = options.get("extra_channels", 0), (1, *found.shape)
    cond = {"concat": jax.ShapeDtypeStruct((*size[:-1], more), np.float32)} if more else None
    abstract, _ = shapes(module, size, cond)
    wanted = {path: leaf.shape for path, leaf in layouts.flat(abstract).items()}
    table = layouts.table(network, options | {"side": found.shape[0]}, wanted)
    ours = layouts.to_ours(table, found.tensors, wanted)
    back = layouts.to_theirs(table, ours)
    assert back.keys() == found.tensors.keys()
    assert all(np.array_equal(back[name], found.tensors[name]) for name in back)
    return module, jax.tree.unflatten(jax.tree.structure(abstract), [ours[path] for path in wanted])
