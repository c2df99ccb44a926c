"""Checks before training of what only a later step of the run would find."""

from __future__ import annotations

import math
from typing import Any

import jax

from diffusion_jax.assembly import datasets, sampling, trainer
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.data import Dataset
from diffusion_jax.data.aspect import Bucketed
from diffusion_jax.training import loop, memory, step, trackers
from diffusion_jax.training.state import TrainState

CADENCES = ("steps", "log_every", "checkpoint_every", "eval_every", "sample_every")


def check_run(
    experiment: Experiment, parts: trainer.Training, template: TrainState, dataset: Dataset
) -> None:
    """Check the settings of a run against its devices and its data, before anything is written.

    Args:
      experiment: the model and its settings.
      parts: its compiled training.
      template: shapes and places of the training state.
      dataset: the data.

    Raises:
      UserError: for trackers that are not installed, names that only sampling or the best
        checkpoint need, cadences that do not fit steps_per_call, a batch that does not fit the
        devices or the data, float16 without a scaled loss, and a state that does not fit the
        memory.
    """
    training, size = experiment.training, experiment.data.batch_size
    trackers.check_installed(training.trackers)
    trainer.weights_name(experiment)
    if experiment.kind.samples:
        sampling.method(experiment)
    cadences = {f"config.training.{name}": training._asdict()[name] for name in CADENCES}
    loop.check_cadences(training.steps_per_call, cadences)
    if size % training.accumulate:
        raise UserError(
            f"config.training.accumulate={training.accumulate} does not divide "
            f"config.data.batch_size={size}"
        )
    if experiment.options.get("dtype") == "float16" and not training.loss_scale:
        raise UserError(
            "config.model.dtype=float16 loses small gradients unless the loss is scaled; set "
            "--config.training.loss_scale='dynamic()' or 'fixed(1.0)', or "
            "--config.model.dtype=bfloat16"
        )
    check_memory(template)
    if isinstance(dataset.train, Bucketed):
        _check_buckets(experiment, dataset.train)
    batch = datasets.training_batches(experiment, dataset, parts.runner.rows(size))
    if training.best:
        _check_best(experiment, template, batch(0))


def _check_buckets(experiment: Experiment, train: Bucketed) -> None:
    """Check that the network takes the shapes of all buckets, and that each step has one."""
    if experiment.training.steps_per_call > 1 or experiment.dense or experiment.latents:
        raise UserError(
            "config.data.buckets: the images of a step have one shape, and those of the next "
            "another; set --config.training.steps_per_call=1 and --config.data.dense=''"
        )
    for own in train.buckets:
        shape = own[0]["image"].shape
        model = experiment._replace(shape=shape)
        try:
            jax.eval_shape(lambda key, m=model: m.kind.init(m, key), jax.random.key(0))
        except UserError as error:
            raise UserError(f"config.data.buckets: {shape[0]} x {shape[1]}: {error}") from None


def _check_best(experiment: Experiment, template: TrainState, batch: dict[str, Any]) -> None:
    """Check that config.training.best is the name of a held-out metric."""
    best = experiment.training.best
    if not experiment.training.eval_every:
        raise UserError(
            f"config.training.best={best} is a metric of the held-out rows, and "
            "config.training.eval_every=0 writes none; set it to a number of steps"
        )
    evaluate = step.make_eval_step(experiment.kind.loss(experiment))
    numbers = jax.eval_shape(evaluate, template, batch, jax.random.key(0))
    numbers.pop("loss_by_level", None)
    known = [f"eval_{name}" for name in numbers]
    if best not in known:
        raise unknown("value of config.training.best", best, known)


def check_memory(template: TrainState) -> None:
    """Check that a training state and its gradient fit into the memory of a device.

    Args:
      template: the shapes of the state, with their shardings.

    Raises:
      UserError: if they do not; it states how much is needed.
    """

    def size(tree: Any) -> int:
        arrays = [
            x
            for x in jax.tree.leaves(tree)
            if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        ]
        return sum(
            x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape)
            for x in arrays
        )

    need, have = size(template) + size(template.params), memory.device_memory()
    if have is not None and need > have:
        count = sum(x.size for x in jax.tree.leaves(template.params))
        raise UserError(
            f"config.model has {count:,} parameters: training needs {need / 2**30:.1f} GiB for its "
            f"state, and there are {have / 2**30:.1f}; lower config.model.width or blocks, or "
            "shard over more devices by config.mesh.fsdp"
        )
