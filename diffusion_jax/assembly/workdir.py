"""A run's folder: what is in it, how a run starts or resumes in it, and how a trained model comes
out of it.

config.json      the resolved config           data.json        shape and classes of the data
provenance.json  commit, versions, machine     checkpoints/     Orbax, verified (training/checkpoint.py)
metrics.jsonl    one row per log interval      tensorboard/     the same as events
samples/         grids drawn while training        grids/           times placed for the model, by experiments.optimize_grid
reconstructions/, interpolations/                  of an autoencoder, while training
ema_snapshots/   power EMAs, for those of other lengths (training/post_hoc.py)
checkpoints_best/  that of the smallest config.training.best    nonfinite/    reports of steps (training/forensics.py)
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_jax import data, files, provenance, reading
from diffusion_jax.assembly import (
    autoencoders,
    components,
    config_schema,
    datasets,
    defaults,
    denoiser,
    experiment,
    latent,
    same_run,
    trainer,
)
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.kinds import few_step
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.data import consent
from diffusion_jax.data.latents import Encoded
from diffusion_jax.denoisers import guides, parameterization
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.training import distributed, placement, post_hoc, restoring
from diffusion_jax.types import Params


def prepare(workdir: str | Path, config: ConfigDict, dataset) -> Path:
    """Make the folder and write what describes the run (the first process); on a resumed run check
    that config and data are the same.

    Raises UserError naming every key and every property of the data that differs, or if the folder
    cannot be written.
    """
    workdir = Path(workdir).expanduser().absolute()
    resolved = same_run.resolved(config)
    for key in consent.KEYS:  # the config is the user's own
        consent.remember(config.data.get(key, ""))
    if restoring.latest_step(workdir / "checkpoints") is not None:
        same_run.check_resumed(workdir, resolved)
        dataset = same_run.same_data(workdir, about_data(workdir), dataset, sizes=True)
    if not distributed.first():
        return workdir
    try:
        files.save_json(workdir / "config.json", resolved)
        files.save_json(workdir / "provenance.json", provenance.provenance(resolved, config.seed))
        files.save_json(
            workdir / "data.json",
            {
                "name": dataset.name,
                "image_shape": dataset.image_shape,
                "num_classes": dataset.num_classes,
                "class_names": dataset.class_names,
                **(
                    {}
                    if dataset.train is None
                    else {"train_size": len(dataset.train), "test_size": len(dataset.test)}
                ),
                **({"encoded": dataset.encoded._asdict()} if dataset.encoded else {}),
            },
        )
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    return workdir


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[Callable[[], None]]:
    """Nobody else trains in this folder while the block runs (the first process looks after that).

    Yields in_place(), which raises UserError once the folder was moved or deleted, before anything
    makes it anew. Raises UserError, telling who does, if somebody else does already, or if the
    folder cannot be written.
    """
    if not distributed.first():
        yield lambda: None
        return
    path = Path(workdir).expanduser().absolute() / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    with (
        file
    ):  # the system lets go of the lock when the file is closed, also when the process is killed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"--workdir={workdir} is in use by {file.read().strip() or 'another process'}; "
                "wait for it, stop it, or use another --workdir"
            ) from None
        except (
            OSError
        ):  # a file system without locks; and on NFS those of some servers do not reach other hosts
            pass
        with one_line(workdir):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield functools.partial(_in_place, path, os.fstat(file.fileno()))


def _in_place(lock: Path, ours: os.stat_result) -> None:
    """UserError unless the lock file at this path is still the one that this process holds."""
    try:
        if os.path.samestat(os.stat(lock), ours):
            return
    except OSError:
        pass
    raise UserError(
        f"--workdir={lock.parent} was moved or deleted while this command was writing to it; "
        "move it back, then run the same command again to resume from its last checkpoint"
    )


@contextlib.contextmanager
def one_line(workdir: str | Path) -> Iterator[None]:
    """What the file system refuses (no space left, a file that is gone, ...) as a UserError."""
    try:
        yield
    except BrokenPipeError:  # of the command's own output, which no folder is to blame for
        raise
    except OSError as error:
        what = (
            f"{error.strerror}" + (f": '{error.filename}'" if error.filename else "")
            if error.strerror
            else str(error)
        )
        raise UserError(
            f"{what}; when that is mended, the same command goes on from the last checkpoint"
        ) from error


class Trained(NamedTuple):
    """A model out of a workdir."""

    experiment: Experiment
    params: Params
    step: int
    weights: str  # which: 'params', the name of an EMA, or 'post_hoc(LENGTH)'
    data: dict[str, Any]  # data.json


CONFIG_FILE = "config.json"


def saved_config(workdir: str | Path, key: str = "--workdir") -> ConfigDict:
    """The resolved config of a workdir, locked and checked, without data paths that the user has
    never named.

    Raises:
      UserError: where there is none, naming the key that was to name one, and for one that is
        damaged or out of range.
    """
    path = Path(workdir).expanduser() / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{key}={workdir} has no {CONFIG_FILE}; train a model there first (experiments.train)"
        )
    config = _tuples(
        files.load_json(path, reading.record({"data": reading.table(), "sampler": reading.table()}))
    )
    _tell_if_edited(Path(workdir), config)
    config = defaults.filled(config)
    try:
        config_schema.check(config, complete=True)
    except UserError as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    for part in consent.KEYS:
        named = config["data"].get(part, "")
        if not consent.remembered(named):
            print(
                f"note: '{path}' names data.{part}={named}, which you have not named on this machine, so it is not used; "
                f"if you trust these data, say so once: --config.data.{part}={named}",
                file=sys.stderr,
            )
            config["data"][part] = ""
    config = ConfigDict(config).lock()
    if (path.parent / "data.json").is_file() and config.get("objective"):
        config = denoiser.usable_guidance(config, about_data(path.parent)["num_classes"])
    return config


def _tell_if_edited(workdir: Path, config: dict[str, Any]) -> None:
    """A note where config.json is no longer what the run wrote: by its hash in provenance.json, if
    that is there and whole.
    """
    with contextlib.suppress(UserError):
        written = files.load_json(workdir / "provenance.json", reading.table()).get("config_hash")
        if written and written != provenance.config_hash(config):
            print(
                f"note: '{workdir / CONFIG_FILE}' was edited after the run wrote it, so the model may not be what was trained; "
                "keys of one command are changed by --config.KEY=VALUE",
                file=sys.stderr,
            )


_SIZES = reading.items(reading.integer(1, 2**20), least=1, most=4)

_ENCODED = {
    "autoencoder": reading.text(1),
    "image_shape": _SIZES,
    "data": reading.text(),
    "num_classes": reading.integer(0, 10**6),
    "class_names": reading.items(reading.text()),
    "shift": reading.items(reading.number()),
    "scale": reading.items(reading.number(low=1e-30)),
}

DATA = reading.record(
    {
        "image_shape": _SIZES,
        "num_classes": reading.integer(0, 10**6),
        "class_names": reading.items(reading.text()),
    },
    {
        "name": reading.text(),
        "encoded": reading.record(_ENCODED),
        "train_size": reading.integer(),
        "test_size": reading.integer(),
    },
)


def about_data(workdir: str | Path) -> dict[str, Any]:
    """What data.json says of the data of a run: image_shape, num_classes, class_names, and of
    latents what encoded them.

    Raises:
      UserError: where it is missing or damaged.
    """
    path = Path(workdir) / "data.json"
    about = files.load_json(path, DATA)
    if len(about["class_names"]) not in (0, about["num_classes"]):
        many = f"{len(about['class_names'])} class_names for num_classes={about['num_classes']}"
        raise UserError(f"'{path}' is damaged: it has {many}")
    return about


def dataset(
    config: ConfigDict, workdir: str | Path | None, *, resumes: bool = False
) -> data.Dataset:
    """The data set of a config, which is still what the run in `workdir` learned from, if one has
    begun there.

    Args:
      config: the resolved config.
      workdir: the folder of a run, or None.
      resumes: the run is to go on, so that the numbers of images must be the same wherever the data
        are. Otherwise they must be so where the config names the data that the run had, and may
        differ where the user names other data.

    Raises:
      UserError: naming what differs from data.json.
    """
    loaded = datasets.dataset(config)
    if workdir is None or restoring.latest_step(Path(workdir) / "checkpoints") is None:
        return loaded
    sizes = resumes or same_run.names_the_same_data(Path(workdir), config)
    return same_run.same_data(Path(workdir), about_data(workdir), loaded, sizes=sizes)


def _tuples(value):
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load(workdir: str | Path, config: ConfigDict, mesh=None, *, step: int | None = None) -> Trained:
    """The newest whole checkpoint of a workdir, with the weights that config.sampler.ema names.
    UserError if there is none.

    mesh: where they go, each into its place; None: whole, where jax puts an array. step: the
    checkpoint of that step. What config.sampler.guide needs of other runs, or of other weights of
    this one, is loaded likewise (Experiment.others).
    """
    workdir = Path(workdir).expanduser().absolute()
    about = about_data(workdir)
    other = functools.partial(_other, workdir, mesh=mesh)
    built = experiment.assemble(config, about["image_shape"], about["num_classes"], other)._replace(
        grids=workdir / "grids"
    )
    same_run.check_usable(workdir, config, _same_network(workdir, built))
    if "encoded" in about:
        built = with_autoencoder(
            built, Encoded(**{key: about["encoded"][key] for key in Encoded._fields}), mesh
        )
    template = jax.eval_shape(lambda key: built.kind.init(built, key), jax.random.key(0))
    template = placement.placed(template, mesh) if mesh else template
    if length := post_hoc.length_of(built.sampling.weights):
        made = post_hoc.reconstruct(workdir / "ema_snapshots", length, template)
        params = placement.put(made.params, mesh) if mesh else made.params
        return Trained(built, params, made.step, built.sampling.weights, about)
    which = trainer.weights_name(built)
    restored = restoring.restore_params(
        _checkpoints(workdir, built.sampling.checkpoint),
        None if which == "params" else which,
        template=template,
        step=step,
    )
    return Trained(built, restored.state, restored.step, which, about)


def _same_network(workdir: Path, built: Experiment) -> bool:
    """Whether the experiment's process shows the network what that of the workdir's own config
    does.
    """
    file = workdir / CONFIG_FILE
    trained = (
        files.load_json(file, reading.table()).get("process")
        if file.is_file()
        else built.specs.process
    )
    if trained == built.specs.process:
        return True
    theirs = build(components.PROCESSES, trained)
    return parameterization.same_network(built.parameterization, theirs, built.process)


def beside(workdir: str | Path, key: str, shape: tuple[int, ...]) -> Trained:
    """A trained model by its own config, to stand beside others. UserError naming `key` if its
    images are not of `shape`.
    """
    trained = load(workdir, saved_config(workdir, key))
    own = tuple(trained.data.get("encoded", trained.data)["image_shape"])
    if own != tuple(shape):
        raise UserError(
            f"{key}={workdir} draws {own}, and the others {tuple(shape)}; name a model of the same data"
        )
    return trained


def _checkpoints(workdir: Path, chosen: str) -> Path:
    """The folder that config.sampler.checkpoint means."""
    if chosen not in ("", "best"):
        raise unknown("config.sampler.checkpoint", chosen, ["best"])
    if chosen and restoring.latest_step(workdir / "checkpoints_best") is None:
        raise UserError(
            f"{workdir} has no best checkpoint; train with --config.training.best=eval_loss to keep it"
        )
    return workdir / ("checkpoints_best" if chosen else "checkpoints")


def _other(workdir: Path, named: guides.AuxiliaryModel, mesh=None) -> tuple[Experiment, Params]:
    """Another trained network: of another workdir, or of this one by another average or at another
    step.
    """
    root = Path(named.workdir).expanduser() if named.workdir else workdir
    config = saved_config(root, "config.sampler.guide: workdir").unlock()
    config.sampler.guide = "cfg()"  # a guide is not itself guided
    config.sampler.ema = named.ema or config.sampler.ema
    trained = load(root, config.lock(), mesh, step=named.step or None)
    return trained.experiment, trained.params


def _autoencoder(data: str, workdir: str) -> str:
    """The workdir of the autoencoder of a model of latents. UserError if it is ''."""
    if not workdir:
        raise UserError(
            f"data.name={data} needs config.latent.autoencoder, the workdir of what made them"
        )
    return workdir


def with_autoencoder(built: Experiment, encoded: Encoded | None, mesh=None) -> Experiment:
    """The experiment with the autoencoder that makes images of its latents; unchanged if its
    examples are no latents.

    UserError if config.latent.autoencoder names none, or another than the one that made the
    latents.
    """
    if encoded is None:
        return built
    root = _autoencoder(built.data.name, built.sources.autoencoder)
    trained = load(root, saved_config(root, "config.latent.autoencoder"), mesh)
    return built._replace(
        latents=latent.latents(
            autoencoders.codec(trained.experiment, trained.params), encoded, root
        )
    )


def for_training(
    config: ConfigDict, dataset: data.Dataset, workdir: str | Path | None = None
) -> Experiment:
    """The experiment with what it needs from elsewhere: features, an autoencoder, a teacher.
    workdir: see `taught`.
    """
    built = experiment.assemble(config, dataset.image_shape, dataset.num_classes)
    return taught(
        with_autoencoder(built.kind.prepare(built, dataset.train), dataset.encoded),
        workdir,
    )


def images(config: ConfigDict, workdir: str | Path | None = None) -> data.Dataset:
    """The images that a model's samples are judged against: its data set, or, of latents, that of
    the autoencoder.

    workdir: the folder of the model, if there is one. UserError, as of `dataset`, for other data
      than it learned from.
    """
    if config.data.name != "latents":
        return dataset(config, workdir)
    root = _autoencoder(config.data.name, defaults.complete(config).latent.autoencoder)
    return dataset(saved_config(root, "config.latent.autoencoder"), root)


def taught(built: Experiment, workdir: str | Path | None = None) -> Experiment:
    """The experiment with what config.distill.teacher and config.init_from name: a teacher, and
    parameters to start from.

    init_from = '' starts where the teacher is, if there is one with the same network. workdir: a
    run that has begun there needs no start. UserError for an init_from of another network, naming
    the key.
    """
    teacher, start = built.sources.teacher, built.sources.start
    if teacher:
        trained = load(teacher, saved_config(teacher, "config.distill.teacher"))
        if trained.experiment.shape != built.shape:
            raise UserError(
                f"config.distill.teacher={teacher} is for examples {trained.experiment.shape}, not {built.shape}"
            )
        theirs, ours = (_told(one) for one in (trained.experiment, built))
        if theirs and ours and theirs != ours:
            raise UserError(
                f"config.distill.teacher={teacher} takes {theirs} as its condition, and this model {ours}; "
                "use the same config.conditional, config.text and data"
            )
        built = built._replace(teacher=(trained.experiment, trained.params))
        few_step.teacher_scale(
            built
        )  # guidance that cannot be is refused before anything is trained
    if workdir is not None and restoring.latest_step(Path(workdir) / "checkpoints") is not None:
        return built
    if start and (differs := _other_network(saved_config(start, "config.init_from"), built)):
        raise UserError(
            f"config.init_from={start} is another network, by config.{differs}; use the same, or another start"
        )
    if not start and teacher and not _other_network(saved_config(teacher), built):
        start = teacher
    return built._replace(begin=load(start, saved_config(start)).params) if start else built


def _told(built: Experiment) -> str:
    """What a model is conditioned on, in words; '' for an unconditional one."""
    classes = [f"{built.num_classes} classes"] if built.num_classes else []
    captions = (
        [f"captions by {built.specs.encoder}, {built.encoder.max_length} tokens"]
        if built.encoder
        else []
    )
    return " and ".join(classes + captions)


# keys of config.model that say nothing of what the parameters mean
_HOW = ("dropout", "dtype", "remat", "attention_impl", "second_time")


def _other_network(old: ConfigDict, new: Experiment) -> str:
    """The first key by which parameters of a saved config mean nothing to a model; '' if there is
    none.
    """
    model = {"name": new.specs.model, **new.options}
    for key in sorted({*old.model, *model} - {*_HOW}):
        if key in old.model and old.model[key] != model.get(key):
            return f"model.{key}"
    return "" if old.parameterization == new.specs.parameterization else "parameterization"


def with_guide(trained: Trained, spec: str, workdir: str | Path, mesh=None) -> Trained:
    """The model with another guide than config.sampler.guide; what that needs is loaded."""
    load = functools.partial(_other, Path(workdir).absolute(), mesh=mesh)
    return trained._replace(experiment=experiment.guided_by(spec, trained.experiment, load))
