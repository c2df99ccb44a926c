"""Training, from a config to a workdir, with resumption."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import (
    components,
    config_schema,
    datasets,
    denoiser,
    hooks,
    locking,
    preflight,
    preparation,
    trainer,
    workdir,
)
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import files, staging
from diffusion_jax.data import Dataset
from diffusion_jax.report import losses, media
from diffusion_jax.training import (
    checkpoint,
    distributed,
    loop,
    metrics,
    nonfinite,
    restoring,
    sharding,
)
from diffusion_jax.training.state import TrainState


class RunSetup(NamedTuple):
    """The parts of a run that stay constant.

    Attributes:
      experiment: the model and its settings.
      parts: its compiled training.
      template: shapes and places of the training state.
      dataset: the data.
      root: the workdir.
      in_place: raises UserError where the workdir was moved or deleted; it is called before
        anything is written there.
      fit: the training loop.
      until: the step at which this process stops; None for the end of the run.
    """

    experiment: Experiment
    parts: trainer.Training
    template: TrainState
    dataset: Dataset
    root: Path
    in_place: Callable[[], None]
    fit: Callable[..., loop.Fitted]
    until: int | None


class Start(NamedTuple):
    """The start of an attempt: a state, what was restored, and the rollbacks so far."""

    state: TrainState
    restored: restoring.Restored | None
    rollback: nonfinite.Rollback


def train(
    config: ConfigDict,
    path: str,
    *,
    dataset: Dataset | None = None,
    fit: Callable[..., loop.Fitted] = loop.fit,
    until: int | None = None,
    asked: Container[str] = (),
) -> bool:
    """Train to config.training.steps, and resume if the workdir has a checkpoint.

    Args:
      config: the config.
      path: the workdir, which may be a URL such as gs://bucket/runs/a.
      dataset: instead of the data of the config.
      fit: the training loop, which experiments.benchmark replaces.
      until: a step at which training stops and saves before the end of the run, a multiple of
        config.training.steps_per_call; calling again resumes it. None trains to the end.
      asked: the config keys that the user has set. A scale of guidance that is not among them is
        left out where the data have no labels.

    Returns:
      True at the end and at `until`; False if a signal stopped the run.

    Raises:
      UserError: for a config that does not fit itself, the data, the devices or the run that the
        workdir holds.
    """
    config_schema.check_values(config)
    components.check_components(config)
    path = staging.local(path)
    dataset = dataset or workdir.dataset(config, path, resumes=True)
    dataset = datasets.with_features(dataset, config)
    if "sampler.guidance" not in asked:
        config = denoiser.usable_guidance(config, dataset.num_classes)
    experiment = preparation.for_training(config, dataset, path)
    parts = trainer.training(experiment)
    # this traces the network: what does not fit fails here, before anything is written
    template = parts.runner.template(parts.init, jax.random.key(experiment.seed))
    preflight.check_run(experiment, parts, template, dataset)
    with locking.locked(path) as in_place, locking.one_line(path):
        root = workdir.prepare(path, config, dataset)
        distributed.barrier("workdir")
        setup = RunSetup(experiment, parts, template, dataset, root, in_place, fit, until)
        ended = _repeat(setup)
        if distributed.first():
            in_place()
            losses.loss_curve(metrics.read_rows(root / "metrics.jsonl"), root / "loss.png")
            staging.push(root)
    if ended.stopped_by:
        print(
            f"{ended.stopped_by.name}: saved at step {ended.step} of {experiment.training.steps}; "
            "running the same command again resumes training",
            file=sys.stderr,
        )
    return not ended.stopped_by


def _repeat(run: RunSetup) -> loop.Fitted:
    """Train; after a step that is not finite, again from an earlier checkpoint if so configured."""
    failed = None
    while True:
        with _compiling(run) if failed is None else contextlib.nullcontext():
            start = _start(run, failed)
        try:
            return _attempt(run, start)
        except nonfinite.NonFinite as error:
            if run.experiment.training.on_nonfinite != "rollback":
                raise
            # a traceback would keep the state in memory
            failed = error.with_traceback(None), start.rollback


@contextlib.contextmanager
def _compiling(run: RunSetup) -> Iterator[None]:
    """Compile the train step in a thread, or load it from the cache, as the block makes the state.

    It is left to the first step with several processes and under pmap, and where no step is left.
    """
    last = restoring.latest_step(run.root / "checkpoints") or 0
    until = run.experiment.training.steps if run.until is None else run.until
    if jax.process_count() > 1 or run.experiment.mesh.parallel != "jit" or last >= until:
        yield
        return
    pool = ThreadPoolExecutor(1, "compile")
    try:
        compiled = pool.submit(_compile, run, last)
        yield
        compiled.result()
    finally:
        pool.shutdown(wait=False)  # a signal does not wait for the compiler


def _compile(run: RunSetup, step: int) -> None:
    """Compile the train step for the batch of a step, of which one example is read."""
    training, settings = run.experiment.training, run.experiment.data
    example = datasets.training_batches(run.experiment, run.dataset, np.arange(1))(step)
    place = sharding.examples(run.parts.runner.mesh, 1)

    def stacked(x: np.ndarray) -> jax.ShapeDtypeStruct:
        shape = (training.steps_per_call, settings.batch_size, *x.shape[1:])
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    run.parts.step.trace(run.template, jax.tree.map(stacked, example)).lower().compile()


def _start(run: RunSetup, failed: tuple[nonfinite.NonFinite, nonfinite.Rollback] | None) -> Start:
    """The newest checkpoint, or a fresh state.

    Args:
      run: the run.
      failed: the error and the rollbacks of an attempt that met a step that is not finite. The run
        then goes back to the last checkpoint of the regular cadence. Those that a signal caused are
        passed over, so that stopping a run changes nothing.
    """
    experiment, parts = run.experiment, run.parts
    every = experiment.training.checkpoint_every if failed else 0
    if staging.of(run.root):  # the others have folders of their own
        distributed.barrier("checkpoints are sent")
        if not distributed.first():
            staging.refresh(run.root)
        distributed.barrier("checkpoints are listed")
    restored = restoring.restore(run.root / "checkpoints", run.template, multiple_of=every or 1)
    if restored:
        state = restored.state
        rollback = nonfinite.Rollback(**restored.extra.get("rollback", {}))
    else:
        state = parts.runner.init(parts.init, jax.random.key(experiment.seed))
        rollback = nonfinite.Rollback()
    if failed:
        state, rollback = nonfinite.roll_back(*failed, state, experiment.training.steps_per_call)
        print(
            f"{failed[0]}; rolling back to step {rollback.to} (rollback attempt {rollback.tries} "
            f"of {nonfinite.MAX_ROLLBACKS})",
            file=sys.stderr,
        )
    return Start(state, restored, rollback)


def _attempt(run: RunSetup, start: Start) -> loop.Fitted:
    """Train to the end, to a signal, or to a step that is not finite."""
    experiment, state, restored = run.experiment, start.state, start.restored
    training, first = experiment.training, int(state.step)
    _announce(run, start)
    with (
        contextlib.closing(_writer(run, first)) as writer,
        contextlib.closing(_checkpointer(run, start)) as checkpointer,
        hooks.best(training.best, run.root, restored) as keep_best,
    ):
        # indented text is code in Markdown, which TensorBoard shows
        writer.text(
            first, "config", textwrap.indent(files.canonical_json(experiment.record), "    ")
        )
        drawn = hooks.hooks(experiment, run.parts, run.dataset, run.root, writer, keep_best)
        rollback = {"rollback": start.rollback._asdict()}
        return run.fit(
            state,
            hooks.forecast_shapes(experiment, run.parts.step, first, run.root),
            _batches(run, start.rollback.shift),
            total_steps=training.steps,
            until=run.until,
            batch_size=experiment.data.batch_size,
            steps_per_call=training.steps_per_call,
            log_every=training.log_every,
            checkpoint_every=training.checkpoint_every,
            checkpointer=checkpointer,
            writer=writer,
            hooks=[(every, _after(run.in_place, hook)) for every, hook in drawn],
            extra=files.load_json(run.root / "provenance.json") | rollback,
            resumed=restored and restored.extra,
            shift=start.rollback.shift,
            on_nonfinite=training.on_nonfinite,
            progress=_shown(run).plural,
            report=hooks.reporter(experiment, run.dataset, run.root, state, start.rollback.shift),
        )


def _shown(run: RunSetup) -> media.Media:
    """What the examples are."""
    return media.media_of(run.dataset.image_shape, run.dataset.normalization)


def _announce(run: RunSetup, start: Start) -> None:
    """One line on stderr about the model, the data and the devices."""
    count = sum(x.size for x in jax.tree.leaves(start.state.params))
    begins = f"resuming at step {int(start.state.step)}" if start.restored else "starting"
    shape = "x".join(map(str, run.dataset.image_shape))
    print(
        f"{run.root}: {count:,} parameters, {len(run.dataset.train):,} {_shown(run).plural} "
        f"of shape {shape}, {jax.device_count()} device(s); {begins}",
        file=sys.stderr,
    )


def _writer(run: RunSetup, first: int) -> metrics.Writer:
    """The log of metrics, on the first process."""
    if not distributed.first():
        return metrics.no_writer()
    experiment = run.experiment
    return metrics.open_writer(
        run.root,
        start_step=first,
        log_every=experiment.training.log_every,
        names=experiment.training.trackers,
        config=experiment.record,
    )


def _checkpointer(run: RunSetup, start: Start) -> checkpoint.Checkpointer:
    """The checkpoints of the workdir."""
    training = run.experiment.training
    return checkpoint.Checkpointer(
        run.root / "checkpoints",
        keep=training.keep,
        keep_every=training.keep_every,
        restored_step=start.restored and start.restored.step,
        delete_newer=start.rollback.to == int(start.state.step),
        check=run.in_place,
    )


def _batches(run: RunSetup, shift: int) -> Callable[[int], Iterator[tuple[int, Any]]]:
    """start -> (step, placed batches of one call), from that step on.

    Args:
      run: the run.
      shift: steps of the data that rollbacks pass over.
    """
    training, settings, runner = run.experiment.training, run.experiment.data, run.parts.runner
    k = training.steps_per_call
    rows = runner.rows(settings.batch_size)
    batch = datasets.training_batches(run.experiment, run.dataset, rows)
    calls = loop.stack(batch, k)

    def put(stacked: Any) -> Any:
        return runner.put_batch(stacked, axis=1)

    def batches(start: int) -> Iterator[tuple[int, Any]]:
        stop = (training.steps + shift) // k
        fetched = data.prefetch(calls, start // k, stop, put=put, workers=settings.workers)
        return ((n * k, stacked) for n, stacked in fetched)

    return batches


def _after(check: Callable[[], None], function: Callable) -> Callable:
    """The function, called after check()."""

    def run(*args: Any) -> Any:
        check()
        return function(*args)

    return run
