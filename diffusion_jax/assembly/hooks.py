"""What training does besides its steps: held-out loss, pictures, snapshots, reports, forecasts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly import (
    autoencoders,
    datasets,
    denoiser,
    sample_conditions,
    sampling,
    trainer,
)
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import streams
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.data import Dataset, transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.processes import gaussian
from diffusion_jax.report import media, pictures
from diffusion_jax.training import (
    checkpoint,
    distributed,
    forecast,
    forensics,
    loop,
    metrics,
    post_hoc,
    restoring,
    sharding,
)
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import Step

Hook = Callable[[TrainState, int], Mapping[str, Any] | None]

SIDE = 8  # images in a row of the pictures of an autoencoder


def hooks(
    experiment: Experiment,
    parts: trainer.Training,
    dataset: Dataset,
    root: Path,
    writer: metrics.Writer,
    keep_best: Callable[[Hook], Hook],
) -> list[tuple[int, Hook]]:
    """Make the hooks that the settings of the run request, as (steps between calls, hook).

    Args:
      experiment: the model and its settings.
      parts: its compiled training.
      dataset: the data.
      root: the workdir.
      writer: the writer of metrics and images.
      keep_best: wraps the hook of the held-out loss: see `best`.
    """
    training, averages, kind = experiment.training, experiment.averages, experiment.kind
    found = [(training.eval_every, keep_best(held_out(experiment, parts, dataset)))]
    if kind.samples:
        shown = media.media_of(experiment.shape, experiment.normalization)
        if shown.of_sets:
            hook = _set_plot(experiment, parts, dataset, root, shown)
        else:
            hook = sample_grid(experiment, parts, dataset, root, writer, shown)
        found.append((training.sample_every, hook))
    if kind.reconstructs and experiment.is_image:
        hook = reconstructions(experiment, parts, dataset, root, writer)
        found.append((training.sample_every, hook))
    if averages.powers:
        saver = post_hoc.saver(root / "ema_snapshots", averages.powers)
        found.append((averages.snapshot_every, saver))
    return found


def held_out(experiment: Experiment, parts: trainer.Training, dataset: Dataset) -> Hook:
    """Measure the held-out loss, of the sampling weights and with the same noise every time.

    Args:
      experiment: the model and its settings.
      parts: its compiled training.
      dataset: the data set, of which the whole test split is used.
    """
    size = experiment.data.batch_size

    def evaluate(state: TrainState, step: int) -> Mapping[str, Any]:
        batches = data.sequential(dataset.test, size, rows=parts.runner.rows(size))
        judged = state._replace(params=trainer.weights(experiment, state), opt_state=())
        key = jax.random.key(experiment.seed + streams.HELD_OUT)
        row = loop.evaluate(parts.evaluate, judged, batches, key, put_batch=parts.runner.put_batch)
        return {f"eval_{name}": value for name, value in row.items()}

    return evaluate


def _drawer(
    experiment: Experiment, parts: trainer.Training, count: int, cond: Cond
) -> Callable[[TrainState], Array]:
    """state -> samples of the seeds 0 to count - 1, by the sampling weights of a training state."""
    chosen = sampling.method(experiment)
    run = sampling.sample_fn(
        experiment, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise
    )
    everywhere = sharding.spread(run, parts.runner.mesh)
    keys = generate.seeds_to_keys(range(count))

    def draw(state: TrainState) -> Array:
        params = trainer.weights(experiment, state)
        now, ts = experiment.kind.learned_by(experiment, params), chosen.ts
        if now is not experiment:  # the times are those of the learned schedule
            ts = sampling.times(now, now.sampling)
        rest = np.asarray(ts), np.float32(chosen.guidance)
        return everywhere(denoiser.ensemble(experiment, params), (keys, cond), *rest)

    return draw


def sample_grid(
    experiment: Experiment,
    parts: trainer.Training,
    dataset: Dataset,
    root: Path,
    writer: metrics.Writer,
    shown: media.Media,
) -> Hook:
    """Draw a picture of samples, with a row for each class or for captions of the test split.

    Samples that arrays condition have the conditions of the first test examples, and stand between
    a dense condition and the truth.

    Args:
      experiment: the model and its settings.
      parts: its compiled training.
      dataset: the data set, for the names of classes and for captions.
      root: the workdir; pictures are samples/step_N.png.
      writer: shows the same images in the trackers.
      shown: how samples become tiles of the picture.
    """
    if sample_conditions.has_arrays(experiment):
        return _conditioned_grid(experiment, parts, dataset, root, writer, shown)
    classes = experiment.num_classes
    rows, columns = (min(classes, 10), 10) if classes else (8, 8)
    index = np.arange(rows * columns) // columns
    cond, labels = None, None
    if classes:
        cond = experiment.conditions.of_labels(index % classes)
        labels = dataset.class_names[:rows]
    if experiment.encoder:
        picked = index * len(dataset.test) // rows
        captions, cond = sample_conditions.captions_of_test(experiment, dataset, picked)
        labels = captions[::columns]
    draw = _drawer(experiment, parts, len(index), cond)
    finish = sampling.to_output(experiment)

    def save(state: TrainState, step: int) -> None:
        samples = finish(draw(state))
        if distributed.first():
            path = root / "samples" / f"step_{step:07d}.png"
            media.grid(shown, samples, path, columns=columns, row_labels=labels)
            writer.images(step, "samples", shown.tiles(samples))

    return save


def _conditioned_grid(
    experiment: Experiment,
    parts: trainer.Training,
    dataset: Dataset,
    root: Path,
    writer: metrics.Writer,
    shown: media.Media,
    count: int = 32,
) -> Hook:
    """`sample_grid` of a model that arrays condition."""
    index = np.arange(count) % len(dataset.test)
    batch, cond = sample_conditions.of_examples(experiment, dataset.test, index)
    draw, finish = _drawer(experiment, parts, count, cond), sampling.to_output(experiment)
    seen = experiment.dense and finish(experiment.dense.shown(cond["concat"]))

    def save(state: TrainState, step: int) -> None:
        samples = finish(draw(state))
        if distributed.first():
            path = root / "samples" / f"step_{step:07d}.png"
            if seen is None:
                media.grid(shown, samples, path, columns=SIDE)
            else:
                media.conditioned_grid(shown, seen, samples, finish(batch["image"]), path)
            writer.images(step, "samples", shown.tiles(samples))

    return save


def _set_plot(
    experiment: Experiment,
    parts: trainer.Training,
    dataset: Dataset,
    root: Path,
    shown: media.Media,
    count: int = 2000,
) -> Hook:
    """Draw a plot of a set of samples and of the data, such as a scatter plot.

    Args:
      experiment: a model of points or vectors (D,).
      parts: its compiled training.
      dataset: the data set, whose first training points are shown.
      root: the workdir; pictures are samples/step_N.png.
      shown: how sets are plotted.
      count: number of samples, and of data points.
    """
    classes = experiment.num_classes
    columns = 10 if classes else 8
    cond = None
    if sample_conditions.has_arrays(experiment):
        index = np.arange(count) % len(dataset.test)
        _, cond = sample_conditions.of_examples(experiment, dataset.test, index)
    elif classes:
        cond = experiment.conditions.of_labels(np.arange(count) // columns % classes)
    if classes and experiment.normalization and experiment.normalization.columns:
        cond = sample_conditions.for_judging(experiment, dataset, count)[1]
    draw = _drawer(experiment, parts, count, cond)
    real = data.arrays(dataset.train, limit=count)["image"]

    def save(state: TrainState, step: int) -> None:
        points = transforms.finite(np.asarray(draw(state)))
        if distributed.first():
            path = root / "samples" / f"step_{step:07d}.png"
            media.grid(shown, points, path, columns=columns, real=real)

    return save


def reconstructions(
    experiment: Experiment,
    parts: trainer.Training,
    dataset: Dataset,
    root: Path,
    writer: metrics.Writer,
) -> Hook:
    """Draw reconstructions of test images, and images of the latents between pairs of them.

    Args:
      experiment: an autoencoder.
      parts: its compiled training.
      dataset: the data set, whose first test images are used.
      root: the workdir; pictures are reconstructions/step_N.png and interpolations/step_N.png.
      writer: shows the reconstructions in the trackers.
    """
    shape, count = experiment.shape, SIDE * SIDE
    some = data.arrays(dataset.test, limit=count)
    real = np.resize(some["image"], (count, *shape))
    x, keys = transforms.to_float(real), generate.seeds_to_keys(range(count))
    cond = None
    if experiment.num_classes:
        cond = experiment.conditions.of_labels(np.resize(some["label"], count))
    between = experiment.conditions.null(SIDE)
    mesh = parts.runner.mesh
    rebuild = sharding.spread(autoencoders.reconstruct_fn(experiment), mesh)
    blend = sharding.spread(autoencoders.interpolate_fn(experiment, SIDE), mesh)

    def save(state: TrainState, step: int) -> None:
        params = trainer.weights(experiment, state)
        made = transforms.to_uint8(rebuild(params, (x, cond, keys)))
        ends = x[:SIDE], x[SIDE : 2 * SIDE], between, keys[:SIDE]
        blended = transforms.to_uint8(blend(params, ends).reshape(-1, *shape))
        if not distributed.first():
            return
        # rows of test images alternate with rows of their reconstructions
        pairs = np.stack([images.reshape(SIDE, SIDE, *shape) for images in (real, made)], 1)
        grid = pictures.image_grid(
            pairs.reshape(-1, *shape), SIDE, row_labels=["test", "made"] * SIDE
        )
        name = f"step_{step:07d}.png"
        pictures.save(grid, root / "reconstructions" / name)
        pictures.save(pictures.image_grid(blended, SIDE), root / "interpolations" / name)
        writer.images(step, "reconstructions", made)

    return save


@contextlib.contextmanager
def best(
    number: str, root: Path, restored: restoring.Restored | None
) -> Iterator[Callable[[Hook], Hook]]:
    """Return a function of a hook: the hook that also keeps the best checkpoint.

    Args:
      number: the number of the hook whose smallest value decides, such as 'eval_loss'; '' keeps
        none.
      root: the workdir; the checkpoint is in checkpoints_best/.
      restored: the checkpoint that the run resumes from, or None. Best checkpoints of later steps
        are deleted.
    """
    if not number:
        yield lambda hook: hook
        return
    with contextlib.closing(
        checkpoint.Checkpointer(
            root / "checkpoints_best",
            keep=1,
            restored_step=restored and restored.step,
            delete_newer=True,
        )
    ) as checkpointer:
        yield lambda hook: checkpoint.keep_best(hook, number, checkpointer)


def forecast_shapes(experiment: Experiment, step: Step, start: int, root: Path) -> Step:
    """Return the step function, which also forecasts when samples begin to show shapes.

    It is the step function itself where config.training.first_shapes does not say after how many
    steps that is.

    Args:
      experiment: the model and its settings.
      step: the compiled step function.
      start: the step at which this run begins or resumes.
      root: the workdir, whose folder samples/ the forecast names.
    """
    training = experiment.training
    first, k = training.first_shapes, training.steps_per_call
    at = start + (forecast.SKIPPED + forecast.TIMED) * k
    if not distributed.first() or at >= min(first, training.steps):
        return step

    def say(seconds: float) -> None:
        line = forecast.line(
            seconds / k,
            step=at,
            first_shapes=first,
            batch_size=experiment.data.batch_size,
            folder=str(root / "samples"),
        )
        print(line, file=sys.stderr)

    return forecast.timed(step, say)


def reporter(
    experiment: Experiment, dataset: Dataset, root: Path, state: TrainState, shift: int
) -> Callable[[int, Mapping[str, Any], int | None], None]:
    """The report of a step that is not finite: a file, and the command that repeats the step.

    Args:
      experiment: the model and its settings.
      dataset: the data.
      root: the workdir.
      state: that the attempt begins with.
      shift: steps of the data that rollbacks passed over.
    """
    key = np.asarray(jax.random.key_data(state.key)).tolist()
    layers = forensics.names(state.params)

    def report(step: int, numbers: Mapping[str, Any], good: int | None) -> None:
        if not distributed.first() or forensics.full(root):
            return
        batch = datasets.training_batches(experiment, dataset)
        command = forensics.write(
            root,
            step,
            numbers,
            times=gaussian.time_of_logsnr(experiment.process, numbers["nonfinite"]["levels"]),
            batch=batch(step + shift),
            layers=layers,
            key=key,
            shift=shift,
            checkpoint=good,
        )
        print(
            f"step {step} is not finite: see {root}/{forensics.FOLDER}/step_{step}/report.md; "
            f"to repeat it: {command}",
            file=sys.stderr,
        )

    return report
