"""A trained model as a published workdir, and the config of one where it is read.

The folder is described in pretrained/folders.py. Its config names no path: the data and the runs
that the model was made from are on another machine, and those of a stranger are not followed. Its
autoencoder, if it has one, is the folder of that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import autoencoders, config_schema, data_record, latent, same_run
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Params
from diffusion_jax.pretrained import folders
from diffusion_jax.samplers import grid_files
from diffusion_jax.training import placement

_PATH = re.compile(r"""^[/~]|["'][/~]|stored\(|^[A-Za-z]+://""")
PATH_OF_AUTOENCODER = "latent.autoencoder"


def paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over the keys of a config that name a file or a folder, and their values.

    Args:
      config: nested dictionaries.
    """
    for key, value in config_schema.leaves(config):
        if config_schema.rule(key, value).is_path:
            yield key, value


def without_paths(config: ConfigDict, *, autoencoder: bool) -> dict[str, Any]:
    """Return a config as a published workdir has it: plain data without paths.

    Args:
      config: the resolved config, with the sampling settings to publish.
      autoencoder: whether the folder has an autoencoder.
    """
    found = same_run.resolved(config)
    for key in dict(paths(found)):
        *sections, name = key.split(".")
        section = found
        for each in sections:
            section = section[each]
        section[name] = ""
    found["sampler"]["checkpoint"] = ""
    if autoencoder:
        found["latent"]["autoencoder"] = folders.AUTOENCODER
    return found


def in_place(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a published workdir, with the place of its autoencoder on this machine.

    Args:
      config: nested dictionaries, whose values are of the right types.
      folder: the published workdir.

    Raises:
      UserError: for a config that names a path.
    """
    for key, value in paths(config):
        allowed = ("", folders.AUTOENCODER) if key == PATH_OF_AUTOENCODER else ("",)
        if value not in allowed:
            raise UserError(
                f"'{folder / folders.CONFIG}' names config.{key}={value:.60}, and the config of a "
                "published model names no path; use a copy that experiments.publish wrote"
            )
    if config.get("latent", {}).get("autoencoder"):
        config["latent"]["autoencoder"] = str(folder / folders.AUTOENCODER)
    return config


class PublishedModel(NamedTuple):
    """A trained model that is published.

    Attributes:
      trained: the model, a workdir.Trained.
      config: its config, with the sampling settings to publish.
      grids: the files of the grids that were placed for it.
    """

    trained: Any
    config: ConfigDict
    grids: tuple[Path, ...] = ()


def write(
    folder: Path, source: PublishedModel, dtype: str, autoencoder: PublishedModel | None = None
) -> None:
    """Write the files of a published workdir, except the model card and the picture.

    Args:
      folder: the folder, which exists and is empty.
      source: the model.
      dtype: a key of folders.DTYPES, to which the weights are rounded.
      autoencoder: for a model of latents, its autoencoder.

    Raises:
      UserError: for weights that cannot be published.
    """
    trained = source.trained
    about = {key: trained.data[key] for key in data_record.KEYS if key in trained.data}
    leaves = {k: np.asarray(v) for k, v in placement.leaves_by_path(trained.params).items()}
    folders.save_weights(folder, leaves, dtype)
    if autoencoder is not None:
        inner = folder / folders.AUTOENCODER
        inner.mkdir()
        write(inner, autoencoder, dtype)
        digest = _digest(autoencoder.trained, inner)
        about["encoded"] = about["encoded"] | {"autoencoder": digest}
    config = without_paths(source.config, autoencoder=autoencoder is not None)
    files.save_json(folder / folders.CONFIG, config)
    files.save_json(folder / folders.DATA, about)
    _refuse_paths(config, folders.CONFIG)
    _refuse_paths(about, folders.DATA)
    for grid in source.grids:  # without the provenance, which has the command and its paths
        times = files.load_json(grid, grid_files.FILE)["logsnr"]
        files.save_json(folder / "grids" / grid.name, {"logsnr": times})
    folders.write_manifest(folder, trained.step, trained.weights)


def _refuse_paths(value: Any, where: str) -> None:
    """Refuse a text in a published file that is a path of this machine."""
    for item in value.values() if isinstance(value, Mapping) else value:
        if isinstance(item, (Mapping, list, tuple)):
            _refuse_paths(item, where)
        elif isinstance(item, str) and (_PATH.search(item) or str(Path.home()) in item):
            raise UserError(
                f"'{item:.60}' would be in the published {where}, and looks like a path of this "
                "machine; change the value, by --config.KEY=VALUE if it is one of the config"
            )


def _digest(trained: Any, folder: Path) -> str:
    """The hash of the rounded autoencoder, by which its latents know it."""
    params: Params = trained.params
    leaves = folders.read_weights(folder, placement.leaves_by_path(params))
    rounded = jax.tree.unflatten(jax.tree.structure(params), list(leaves.values()))
    return latent.digest(autoencoders.codec(trained.experiment, rounded).params)
