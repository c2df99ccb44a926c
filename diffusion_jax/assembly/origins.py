"""What samples depend on besides config, step and weights' name: files that may be replaced.

Results that a command keeps are found again by their identity, of which this is a part.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly import components, defaults, specs, stored
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.settings import Experiment, SamplingSettings
from diffusion_jax.core import files, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers.strategy import AuxiliaryModel
from diffusion_jax.pretrained import addresses, folders
from diffusion_jax.samplers import base, grid_files
from diffusion_jax.training import post_hoc


def of_weights(workdir: Path, config: ConfigDict) -> dict[str, Any]:
    """What tells the weights of a model, its guide and its autoencoder from others of their names.

    Args:
      workdir: the local folder of the model.
      config: its config, with what the command line changes.

    Returns:
      Plain data; {} for a run that draws with nothing but its own checkpoint.
    """
    config, found = defaults.with_defaults(config), {}
    if folders.is_published(workdir):
        found["published"] = stored.identity(workdir, "")
    needed = build(components.GUIDES, config.sampler.guide).needs
    if others := [_auxiliary(workdir, named) for named in needed]:
        found["guide"] = others
    if config.data.name == "latents" and config.latent.autoencoder:
        root = addresses.resolve(config.latent.autoencoder, "config.latent.autoencoder")
        found["autoencoder"] = stored.identity(Path(root).expanduser(), "")
    return found


def of_times(settings: SamplingSettings, grids: tuple[Path, ...]) -> dict[str, Any]:
    """The log-SNRs of a grid that a file holds, which may be written anew.

    Args:
      settings: the sampling settings.
      grids: the folders of the grids that were placed for the model (Experiment.grids).

    Returns:
      Plain data; {} for a grid of the family, which its spec defines.
    """
    if base.adaptive(settings.sampler):
        return {}
    spec = base.grid_spec(settings.grid, settings.sampler)
    path = next((own for folder in grids if (own := folder / f"{spec}.json").is_file()), None)
    path = path or _file_in(spec)
    if path is None:
        return {}
    return {"times": grid_files.load(str(path), base.points(settings.sampler, settings.nfe))}


def of_samples(experiment: Experiment, settings: SamplingSettings) -> dict[str, Any]:
    """Both, of a model that `workdir.load` returned.

    Args:
      experiment: the model.
      settings: the sampling settings.
    """
    return {**experiment.origins} | of_times(settings, experiment.grids)


def _auxiliary(workdir: Path, named: AuxiliaryModel) -> Any:
    """The identity of the weights of a network that a guide needs."""
    key = "config.sampler.guide: workdir"
    root = Path(addresses.resolve(named.workdir, key)).expanduser() if named.workdir else workdir
    if not (file := root / folders.CONFIG).is_file():
        raise UserError(f"{key}={named.workdir}: there is no trained model; name its folder")
    own = files.load_json(file, reading.table()).get("sampler", {})
    weights = named.ema or own.get("ema", "")
    made = post_hoc.length_of(weights) is not None
    return {
        "step": named.step or stored.identity(root, own.get("checkpoint", "")),
        "snapshots": post_hoc.steps(root / "ema_snapshots") if made else None,
    }


def _file_in(spec: str) -> Path | None:
    """The file that a spec names, such as 'stored("PATH")'."""
    try:
        tree = specs.parse(spec, "grid", "karras")
    except UserError:
        return None
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    paths = (os.path.expanduser(text) for text in texts if isinstance(text, str))
    return next((Path(path) for path in paths if os.path.isfile(path)), None)
