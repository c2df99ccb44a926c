"""The experiment that is trained: its features, autoencoder, teacher and initial parameters."""

from __future__ import annotations

import sys
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.assembly import compatibility
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.kinds import few_step
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import load, saved_config, with_autoencoder
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset
from diffusion_jax.training import restoring

# options of the network that do not change what its parameters mean
SAME_PARAMETERS = (
    "dropout",
    "dropout_height",
    "dtype",
    "remat",
    "attention_impl",
    "second_time",
    "uncertainty",
)


def for_training(
    config: ConfigDict, dataset: Dataset, workdir: str | Path | None = None
) -> Experiment:
    """Assemble the experiment of a config with everything that its training needs.

    Args:
      config: the config.
      dataset: its data.
      workdir: the workdir of the run; see `with_teacher`.

    Raises:
      UserError: for an objective that does not go with the data or the rest of the model.
    """
    about = dataset.image_shape, dataset.num_classes
    experiment = assemble(config, *about, units=dataset.units)
    experiment = experiment._replace(normalization=dataset.normalization)
    compatibility.check(experiment, latents=dataset.encoded is not None)
    shapes = [own[0]["image"].shape for own in getattr(dataset.train, "buckets", ())]
    heights = {shape[0] for shape in shapes or [experiment.shape]}
    if note := compatibility.heights_note(experiment, heights):
        print(f"note: {note}", file=sys.stderr)
    experiment = experiment.kind.prepare(experiment, dataset.train)
    return with_teacher(with_autoencoder(experiment, dataset.encoded), workdir)


def with_teacher(experiment: Experiment, workdir: str | Path | None = None) -> Experiment:
    """The experiment with its teacher, and with the parameters that training starts from.

    config.init_from names these; where it is '', they are those of the teacher, if that has the
    same network.

    Args:
      experiment: the experiment.
      workdir: the workdir of the run, which needs no initial parameters once it has a checkpoint.

    Raises:
      UserError: naming the key, for a teacher of other data or conditions, and for initial
        parameters of another network.
    """
    teacher, start = experiment.sources.teacher, experiment.sources.start
    if teacher:
        experiment = _with_teacher(experiment, teacher)
    if workdir is not None and restoring.latest_step(Path(workdir) / "checkpoints") is not None:
        return experiment
    if start:
        return _begun(experiment, start)
    if experiment.teacher and not _other_network(experiment.teacher[0], experiment):
        return experiment._replace(begin=experiment.teacher[1])
    return experiment


def _begun(experiment: Experiment, workdir: str) -> Experiment:
    """The experiment that starts from the weights of a workdir, of the same network."""
    trained = load(workdir, saved_config(workdir, "config.init_from"))
    if differs := _other_network(trained.experiment, experiment):
        raise UserError(
            f"config.init_from={workdir} is another network, by config.{differs}; use the same, or "
            "another start"
        )
    ours, theirs = experiment.num_classes, trained.experiment.num_classes
    if ours and theirs and ours != theirs:
        print(
            f"note: config.init_from={workdir} has {theirs} classes and this model has {ours}, so "
            "the embeddings of its classes are learned anew",
            file=sys.stderr,
        )
    return experiment._replace(begin=trained.params)


def _with_teacher(experiment: Experiment, workdir: str) -> Experiment:
    """The experiment with the teacher of a workdir, which must fit it."""
    trained = load(workdir, saved_config(workdir, "config.distill.teacher"))
    if trained.experiment.shape != experiment.shape:
        raise UserError(
            f"config.distill.teacher={workdir} is for examples {trained.experiment.shape}, not "
            f"{experiment.shape}"
        )
    theirs, ours = _condition_in_words(trained.experiment), _condition_in_words(experiment)
    if theirs and ours and theirs != ours:
        raise UserError(
            f"config.distill.teacher={workdir} takes {theirs} as its condition, and this model "
            f"{ours}; use the same config.conditional, config.text and data"
        )
    experiment = experiment._replace(teacher=(trained.experiment, trained.params))
    few_step.teacher_scale(experiment)  # refuses impossible guidance before anything is trained
    return experiment


def _condition_in_words(experiment: Experiment) -> str:
    """Describe the condition of a model; '' for an unconditional one."""
    classes = [f"{experiment.num_classes} classes"] if experiment.num_classes else []
    captions = []
    if experiment.encoder:
        captions = [
            f"captions by {experiment.specs.encoder}, {experiment.encoder.max_length} tokens"
        ]
    arrays = [f"vectors of {len(experiment.units.vector.shift)}"] if experiment.units.vector else []
    arrays += [f"data.dense={experiment.record['data']['dense']}"] if experiment.dense else []
    return " and ".join(classes + captions + arrays)


def _other_network(one: Experiment, other: Experiment) -> str:
    """The first config key by which two models have other parameters; '' if none."""
    old, new = ({"name": each.specs.model, **each.options} for each in (one, other))
    for key in sorted(old.keys() - {*SAME_PARAMETERS}):
        if old[key] != new.get(key):
            return f"model.{key}"
    same = one.specs.parameterization == other.specs.parameterization
    return "" if same else "parameterization"
