"""Training, from a config to a workdir, with resumption."""

from __future__ import annotations

import contextlib
import math
import sys
import textwrap
from collections.abc import Container

import jax
import numpy as np

from diffusion_jax import data, files, streams
from diffusion_jax.assembly import components, config_schema, denoiser, sampling, trainer
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.assembly.hooks import _grid, _reconstructions
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.processes import gaussian
from diffusion_jax.report import curves
from diffusion_jax.training import (
    checkpoint,
    distributed,
    forecast,
    forensics,
    loop,
    memory,
    metrics,
    nonfinite,
    post_hoc,
    restoring,
    step,
)


def train(config, workdir: str, *, dataset=None, fit=None, asked: Container[str] = ()) -> bool:
    """Train to config.training.steps, resuming if workdir has a checkpoint. True if it reached the
    end, False if a signal stopped it.

    dataset, fit: instead of the config's and of loop.fit, for experiments.benchmark. asked: the config keys that the user
    has set; a scale of guidance that is not among them is left out where the data have no labels.
    """
    config_schema.check(config)
    components.check_components(config)
    dataset = dataset or folder.dataset(config, workdir, resumes=True)
    if "sampler.guidance" not in asked:
        config = denoiser.usable_guidance(config, dataset.num_classes)
    built = folder.for_training(config, dataset, workdir)
    parts = trainer.training(built)
    key = jax.random.key(built.seed)
    template = parts.runner.template(
        parts.init, key
    )  # traces the network: what does not fit fails here, before anything is written
    _foresee(built, parts, template, dataset)
    with folder.locked(workdir) as in_place, folder.one_line(workdir):
        root = folder.prepare(workdir, config, dataset)
        distributed.barrier("workdir")
        failed = None
        while True:
            begin = _begin(built, parts, template, root, failed)
            try:
                ended = _attempt(
                    built,
                    parts,
                    dataset,
                    root,
                    *begin,
                    fit=fit or loop.fit,
                    in_place=in_place,
                    record=config.to_dict(),
                )
                break
            except nonfinite.NonFinite as error:
                if built.training.on_nonfinite != "rollback":
                    raise
                failed = (
                    error.with_traceback(None),
                    begin[-1],
                )  # (or the traceback would keep the state in memory)
        if distributed.first():
            in_place()
            curves.loss_curve(metrics.read_rows(root / "metrics.jsonl"), root / "loss.png")
    if ended.stopped_by:
        print(
            f"{ended.stopped_by.name}: saved at step {ended.step} of {built.training.steps}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
    return not ended.stopped_by


def _foresee(built, parts, template, dataset) -> None:
    """Refuse, before anything is written, what only a later step of the run would find.

    Raises:
      UserError: for names that only sampling or the best checkpoint need, cadences that do not fit
        steps_per_call, a batch that does not fit the devices or the data, and a state that does not
        fit the memory.
    """
    training, settings = built.training, built.data
    trainer.weights_name(built)
    if built.kind.samples:
        sampling.plan(built)
    names = ("steps", "log_every", "checkpoint_every", "eval_every", "sample_every")
    loop.check_cadences(
        training.steps_per_call,
        {f"config.training.{name}": training._asdict()[name] for name in names},
    )
    if settings.batch_size % training.accumulate:
        raise UserError(
            f"config.training.accumulate={training.accumulate} does not divide config.data.batch_size={settings.batch_size}"
        )
    _check_memory(template)
    batch = data.batches(
        dataset.train,
        batch_size=built.data.batch_size,
        seed=built.seed,
        flip=built.data.flip,
        rows=parts.runner.rows(built.data.batch_size),
    )
    if not training.best:
        return
    if not training.eval_every:
        raise UserError(
            f"config.training.best={training.best} is a number of the held-out rows, and config.training.eval_every=0 "
            "makes none; set it to a number of steps"
        )
    numbers = jax.eval_shape(
        step.make_eval_step(built.kind.loss(built)), template, batch(0), jax.random.key(0)
    )
    known = [f"eval_{name}" for name, value in numbers.items() if hasattr(value, "shape")]
    if training.best not in known:
        raise unknown("value of config.training.best", training.best, known)


def _check_memory(template) -> None:
    """UserError for a training state, with its gradient, that is larger than the memory of a
    device.
    """

    def size(tree) -> int:
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
            f"config.model has {count:,} parameters: training needs {need / 2**30:.1f} GiB for its state, and there are "
            f"{have / 2**30:.1f}; lower config.model.width or blocks, or shard over more devices by config.mesh.fsdp"
        )


def _begin(built, parts, template, root, failed):
    """(state, what was restored, Rollback) to begin with: the newest checkpoint's, or fresh ones.

    failed: (the error, the Rollback) of a step that was not finite, after which the run goes back
    to the last checkpoint that it makes in any case; those of a run that was told to stop are
    passed over, so that stopping changes nothing.
    """
    every = (failed and built.training.checkpoint_every) or 1
    restored = restoring.restore(root / "checkpoints", template, multiple_of=every)
    state = (
        restored.state if restored else parts.runner.init(parts.init, jax.random.key(built.seed))
    )
    rollback = (
        nonfinite.Rollback(**restored.extra.get("rollback", {}))
        if restored
        else nonfinite.Rollback()
    )
    if failed:
        state, rollback = nonfinite.roll_back(*failed, state, built.training.steps_per_call)
        print(
            f"{failed[0]}; rolling back to step {rollback.to} (rollback attempt {rollback.tries} "
            f"of {nonfinite.MAX_ROLLBACKS})",
            file=sys.stderr,
        )
    return state, restored, rollback


def _attempt(built, parts, dataset, root, state, restored, rollback, *, fit, in_place, record):
    """Train from `state` to the end, to a signal, or to a step that is not finite.

    in_place() raises UserError where the workdir was moved or deleted; it is called before anything
    is written there.
    """
    training, shift = built.training, rollback.shift
    start, steps, k = int(state.step), training.steps, training.steps_per_call
    count = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{root}: {count:,} parameters, {len(dataset.train):,} images {dataset.image_shape}, {jax.device_count()} device(s); "
        + (f"resuming at step {start}" if restored else "starting"),
        file=sys.stderr,
    )

    batch = data.batches(
        dataset.train,
        batch_size=built.data.batch_size,
        seed=built.seed,
        flip=built.data.flip,
        rows=parts.runner.rows(built.data.batch_size),
    )
    calls = loop.stack(batch, k)

    def batches(start):
        def put(b):
            return parts.runner.put_batch(b, axis=1)

        stop = (steps + shift) // k
        return (
            (n * k, b)
            for n, b in data.prefetch(calls, start // k, stop, put=put, workers=built.data.workers)
        )

    with (
        contextlib.closing(
            metrics.open_writer(root, start_step=start, log_every=built.training.log_every)
            if distributed.first()
            else metrics.no_writer()
        ) as writer,
        contextlib.closing(
            checkpoint.Checkpointer(
                root / "checkpoints",
                keep=built.training.keep,
                keep_every=built.training.keep_every,
                restored_step=restored and restored.step,
                delete_newer=rollback.to == start,
                check=in_place,
            )
        ) as checkpointer,
        _best(training.best, root, restored) as keep_best,
    ):
        writer.text(
            start, "config", textwrap.indent(files.canonical_json(record), "    ")
        )  # Markdown's code
        hooks = [(training.eval_every, keep_best(_held_out(built, parts, dataset)))]
        if built.kind.samples:
            hooks.append((training.sample_every, _grid(built, parts, dataset, root, writer)))
        if built.kind.reconstructs:
            hooks.append(
                (training.sample_every, _reconstructions(built, parts, dataset, root, writer))
            )
        if built.averages.powers:
            saver = post_hoc.saver(root / "ema_snapshots", built.averages.powers)
            hooks.append((built.averages.snapshot_every, saver))
        hooks = [(every, _after(in_place, hook)) for every, hook in hooks]
        return fit(
            state,
            _forecast(built, parts.step, start, root),
            batches,
            total_steps=steps,
            batch_size=built.data.batch_size,
            steps_per_call=k,
            log_every=built.training.log_every,
            checkpoint_every=built.training.checkpoint_every,
            checkpointer=checkpointer,
            writer=writer,
            hooks=hooks,
            extra=files.load_json(root / "provenance.json") | {"rollback": rollback._asdict()},
            resumed=restored and restored.extra,
            shift=shift,
            on_nonfinite=built.training.on_nonfinite,
            report=_reporter(built, dataset, root, state, shift),
        )


def _forecast(built, step, start: int, root):
    """The step function, which tells when first shapes are to be expected where the config knows at
    which step.
    """
    first, k = built.training.first_shapes, built.training.steps_per_call
    at = start + (forecast.SKIPPED + forecast.TIMED) * k
    if not distributed.first() or at >= min(first, built.training.steps):
        return step

    def tell(seconds: float) -> None:
        line = forecast.line(
            seconds / k,
            step=at,
            first_shapes=first,
            batch_size=built.data.batch_size,
            folder=str(root / "samples"),
        )
        print(line, file=sys.stderr)

    return forecast.timed(step, tell)


def _after(check, function):
    """function, called after check()."""

    def run(*args):
        check()
        return function(*args)

    return run


@contextlib.contextmanager
def _best(best: str, root, restored):
    """hook -> the hook that also keeps the best state by config.training.best, if that is wanted."""
    if not best:
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
        yield lambda hook: checkpoint.keep_best(hook, best, checkpointer)


def _reporter(built, dataset, root, state, shift):
    """What the loop does at a step that is not finite: leave a report, and tell the command that
    repeats the step.
    """
    key, layers = (
        np.asarray(jax.random.key_data(state.key)).tolist(),
        forensics.names(state.params),
    )

    def report(step, numbers, good):
        if not distributed.first() or forensics.full(root):
            return
        batch = data.batches(
            dataset.train,
            batch_size=built.data.batch_size,
            seed=built.seed,
            flip=built.data.flip,
        )
        times = gaussian.time_of_logsnr(built.process, numbers["nonfinite"]["levels"])
        command = forensics.write(
            root,
            step,
            numbers,
            times=times,
            batch=batch(step + shift),
            layers=layers,
            key=key,
            shift=shift,
            checkpoint=good,
        )
        print(
            f"step {step} is not finite: see {root}/{forensics.FOLDER}/step_{step}/report.md; to repeat it: {command}",
            file=sys.stderr,
        )

    return report


def _held_out(built, parts, dataset):
    """The hook that measures the loss on the held-out split, with the sampling weights and the same
    noise every time.
    """
    size = built.data.batch_size

    def evaluate(state, step):
        batches = data.sequential(dataset.test, size, rows=parts.runner.rows(size))
        judged = state._replace(params=trainer.weights(built, state), opt_state=())
        key = jax.random.key(built.seed + streams.HELD_OUT)
        row = loop.evaluate(parts.evaluate, judged, batches, key, put_batch=parts.runner.put_batch)
        return {f"eval_{name}": value for name, value in row.items()}

    return evaluate
