"""The workdir of a run: its records, its data, and the trained model that it holds.

config.json        the resolved config
data.json          shape and classes of the data
provenance.json    commit, versions, machine
checkpoints/       of Orbax, verified (training/checkpoint.py)
checkpoints_best/  that of the smallest config.training.best
ema_snapshots/     of power EMAs, from which those of other lengths are made (training/post_hoc.py)
metrics.jsonl      one row per log interval; tensorboard/ has the same
samples/           grids drawn during training; an autoencoder has reconstructions/ and
                   interpolations/
grids/             times that experiments.optimize_grid placed for the model
nonfinite/         reports of steps that are not finite (training/forensics.py)

A published model (pretrained/folders.py) is a workdir that is only read. It has config.json,
data.json, one set of weights and grids.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import (
    autoencoders,
    components,
    config_schema,
    data_record,
    datasets,
    defaults,
    denoiser,
    latent,
    origins,
    publication,
    same_run,
    stored,
)
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import files, provenance, reading
from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.types import Params
from diffusion_jax.data import consent
from diffusion_jax.data.latents import Encoded
from diffusion_jax.denoisers import guides, parameterization
from diffusion_jax.pretrained import addresses, folders
from diffusion_jax.training import distributed, restoring

CONFIG_FILE = "config.json"


class Trained(NamedTuple):
    """A trained model.

    Attributes:
      experiment: the model and its settings.
      params: the parameters of the network.
      step: the step of the checkpoint.
      weights: which weights: 'params', the name of an EMA, or 'post_hoc(LENGTH)'.
      data: the content of data.json.
    """

    experiment: Experiment
    params: Params
    step: int
    weights: str
    data: dict[str, Any]


def prepare(workdir: str | Path, config: ConfigDict, dataset: data.Dataset) -> Path:
    """Create the workdir and write what describes the run.

    The first process writes. On a resumed run all check that config and data are the same.

    Args:
      workdir: the folder of the run.
      config: the resolved config of the run.
      dataset: its data set.

    Returns:
      The absolute path.

    Raises:
      UserError: naming every key and every property of the data that differs, or if the workdir
        cannot be written.
    """
    workdir = Path(workdir).expanduser().absolute()
    resolved = same_run.resolved(config)
    for key in consent.KEYS:  # the config is the user's own
        consent.remember(resolved["data"].get(key, ""))
    if restoring.latest_step(workdir / "checkpoints") is not None:
        same_run.check_resumed(workdir, resolved)
        dataset = same_run.same_data(workdir, about_data(workdir), dataset, sizes=True)
    if not distributed.first():
        return workdir
    try:
        files.save_json(workdir / CONFIG_FILE, resolved)
        files.save_json(workdir / "provenance.json", provenance.provenance(resolved, config.seed))
        files.save_json(workdir / "data.json", data_record.description(dataset))
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    return workdir


def saved_config(workdir: str | Path, key: str = "--workdir") -> ConfigDict:
    """The resolved config of a workdir, locked and checked.

    Keys that older versions did not have get the values that mean the same. Paths of data that the
    user has never named on this machine are left out.

    Args:
      workdir: the workdir.
      key: the flag or config key that names it, for messages.

    Raises:
      UserError: where there is no config, and for one that is damaged or out of range.
    """
    workdir = addresses.resolve(workdir, key)
    path = Path(workdir).expanduser() / CONFIG_FILE
    if not path.is_file():
        shipped = addresses.names()
        near = nearest(str(workdir), shipped, cutoff=0.6)
        raise UserError(
            f"{key}={workdir} has no {CONFIG_FILE}; train a model there first (experiments.train)"
            + (f", or name one of the shipped models: {', '.join(shipped)}" if shipped else "")
            + (f"; did you mean --workdir={near}?" if near else "")
        )
    config = _tuples(
        files.load_json(path, reading.record({"data": reading.table(), "sampler": reading.table()}))
    )
    _note_if_edited(path.parent, config)
    try:
        config_schema.check_values(config, complete=True)
    except UserError as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    if folders.is_published(path.parent):
        config = publication.in_place(config, path.parent)
    config = defaults.filled(config)
    for part in consent.KEYS:
        named = config["data"].get(part, "")
        if not consent.remembered(named):
            print(
                f"note: '{path}' names data.{part}={named}, which you have not named on this "
                "machine, so it is not used; "
                f"if you trust these data, say so once: --config.data.{part}={named}",
                file=sys.stderr,
            )
            config["data"][part] = ""
    config = ConfigDict(config).lock()
    if (path.parent / "data.json").is_file() and "objective" in config:
        config = denoiser.usable_guidance(config, about_data(path.parent)["num_classes"])
    return config


def _note_if_edited(workdir: Path, config: dict[str, Any]) -> None:
    """Print a note where config.json is not what the run wrote, by its hash in provenance.json."""
    if folders.is_published(workdir):
        folders.content(workdir, CONFIG_FILE)  # which is never edited
        return
    with contextlib.suppress(UserError):
        written = files.load_json(workdir / "provenance.json", reading.table()).get("config_hash")
        if written and written != provenance.config_hash(config):
            print(
                f"note: '{workdir / CONFIG_FILE}' was edited after the run wrote it, so the model "
                "may not be what was trained; "
                "keys of one command are changed by --config.KEY=VALUE",
                file=sys.stderr,
            )


def about_data(workdir: str | Path) -> dict[str, Any]:
    """Read data.json: image_shape, num_classes, class_names, and how latents are encoded.

    Args:
      workdir: the folder of the run.

    Raises:
      UserError: where it is missing or damaged.
    """
    path = Path(workdir) / "data.json"
    about = files.load_json(path, data_record.RULE)
    if len(about["class_names"]) not in (0, about["num_classes"]):
        many = f"{len(about['class_names'])} class_names for num_classes={about['num_classes']}"
        raise UserError(f"'{path}' is damaged: it has {many}")
    return about


def dataset(
    config: ConfigDict, workdir: str | Path | None, *, resumes: bool = False
) -> data.Dataset:
    """The data set of a config, checked against what the run in the workdir learned from.

    Args:
      config: the resolved config.
      workdir: the workdir of a run, or None.
      resumes: whether training resumes. The numbers of images and the ranges of values must then be
        the same wherever the data are; otherwise they may differ where the user names other data.

    Raises:
      UserError: naming what differs from data.json.
    """
    loaded, workdir = datasets.dataset(config), addresses.resolve(workdir)
    if workdir is None or not stored.has_model(workdir):
        return loaded
    sizes = resumes or same_run.names_the_same_data(Path(workdir), config)
    how = {"sizes": sizes, "values": sizes}
    return same_run.same_data(Path(workdir), about_data(workdir), loaded, **how)


def _tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load(
    workdir: str | Path,
    config: ConfigDict | None = None,
    mesh: Mesh | None = None,
    *,
    step: int | None = None,
) -> Trained:
    """Loads the trained model of a workdir from its newest whole checkpoint.

    What config.sampler.guide needs of other runs, or of other weights of this one, is loaded too
    (Experiment.others).

    Args:
      workdir: the folder of the run.
      config: the config with a command's overrides; by default that of the run. Its sampler.ema
        names the weights.
      mesh: where the weights are placed; None: whole, where JAX places an array.
      step: the checkpoint of that step instead of the newest.

    Raises:
      UserError: if there is no such checkpoint, or the config does not fit the run.
    """
    config = saved_config(workdir) if config is None else config
    workdir = Path(addresses.resolve(workdir)).expanduser().absolute()
    own, about = _own_config(workdir), about_data(workdir)
    other = functools.partial(_auxiliary, workdir, mesh=mesh)
    known = about["image_shape"], about["num_classes"]
    experiment = assemble(config, *known, other, data_record.units(about))
    experiment = experiment._replace(
        grids=grid_folders(workdir),
        origins=origins.of_weights(workdir, config),
        record=defaults.recorded(config.to_dict(), own),
        normalization=data_record.normalization(about),
    )
    same_run.check_usable(workdir, own, config, _same_network(own, experiment))
    if "encoded" in about:
        encoded = Encoded(**{key: about["encoded"][key] for key in Encoded._fields})
        experiment = with_autoencoder(experiment, encoded, mesh)
    found = stored.read(workdir, experiment, mesh, step)
    experiment = experiment.kind.learned_by(experiment, found.params)
    return Trained(experiment, found.params, found.step, found.name, about)


def _own_config(workdir: Path) -> dict[str, Any]:
    """The content of config.json, as the run wrote it; {} where it is missing."""
    file = workdir / CONFIG_FILE
    return files.load_json(file, reading.table()) if file.is_file() else {}


def _same_network(own: dict[str, Any], experiment: Experiment) -> bool:
    """Whether the network sees the same inputs under the experiment's process as in training."""
    if not own or own.get("process") == experiment.specs.process:
        return True
    theirs = build(components.PROCESSES, own["process"])
    return parameterization.same_network(experiment.parameterization, theirs, experiment.process)


def grid_folders(workdir: Path) -> tuple[Path, ...]:
    """The folders of the grids that were placed for a model: of its workdir, and by commands.

    Args:
      workdir: the local folder of the model.
    """
    return tuple(dict.fromkeys((workdir / "grids", folders.outputs(workdir) / "grids")))


def load_for_comparison(workdir: str | Path, key: str, shape: tuple[int, ...]) -> Trained:
    """A trained model by its own config.

    Args:
      workdir: the workdir.
      key: the flag that names it, for messages.
      shape: that its images must have.

    Raises:
      UserError: for images of another shape.
    """
    trained = load(workdir, saved_config(workdir, key))
    own = tuple(trained.data.get("encoded", trained.data)["image_shape"])
    if own != tuple(shape):
        raise UserError(
            f"{key}={workdir} draws {own}, and the others {tuple(shape)}; name a model of the "
            "same data"
        )
    return trained


def _auxiliary(
    workdir: Path, named: guides.AuxiliaryModel, mesh: Mesh | None = None
) -> tuple[Experiment, Params]:
    """A network that a guide needs: of another workdir, or other weights of this one."""
    key = "config.sampler.guide: workdir"
    root = Path(addresses.resolve(named.workdir, key)).expanduser() if named.workdir else workdir
    config = saved_config(root, key).unlock()
    config.sampler.guide = "cfg()"  # a guide is not itself guided
    config.sampler.ema = named.ema or config.sampler.ema
    trained = load(root, config.lock(), mesh, step=named.step or None)
    return trained.experiment, trained.params


def _autoencoder(data: str, workdir: str) -> str:
    """The workdir of the autoencoder of a model of latents. UserError if it is ''."""
    if not workdir:
        raise UserError(
            f"data.name={data} needs config.latent.autoencoder, the workdir of the autoencoder "
            "that made them"
        )
    return workdir


def with_autoencoder(
    experiment: Experiment, encoded: Encoded | None, mesh: Mesh | None = None
) -> Experiment:
    """The experiment with the autoencoder that decodes its latents.

    Args:
      experiment: the experiment.
      encoded: what data.json says of the latents; None where examples are not latents.
      mesh: over which the parameters are spread; see `load`.

    Raises:
      UserError: if config.latent.autoencoder is '', or another than made the latents.
    """
    if encoded is None:
        return experiment
    root = _autoencoder(experiment.data.name, experiment.sources.autoencoder)
    trained = load(root, saved_config(root, "config.latent.autoencoder"), mesh)
    codec = autoencoders.codec(trained.experiment, trained.params)
    return experiment._replace(latents=latent.latents(codec, encoded, root))


def images(config: ConfigDict, workdir: str | Path | None = None) -> data.Dataset:
    """The images that samples are judged against: the data set, or that of a latent's autoencoder.

    Args:
      config: the config of the model.
      workdir: the workdir of the model, if there is one.

    Raises:
      UserError: for other data than the model learned from; see `dataset`.
    """
    if config.data.name != "latents":
        return dataset(config, workdir)
    root = _autoencoder(config.data.name, defaults.with_defaults(config).latent.autoencoder)
    own = saved_config(root, "config.latent.autoencoder")
    imported = own.data.name == "folder" and not own.data.path
    # such a model has no file of latents: what the path names are images
    if config.data.path and (folders.is_published(root) or imported):
        with own.unlocked():
            own.data.path = config.data.path
    return dataset(own, root)
