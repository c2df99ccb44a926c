"""A step with a non-finite loss, run again from its report."""

from __future__ import annotations

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax import data
from diffusion_jax.arrays import example_keys
from diffusion_jax.assembly import experiment, trainer
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.assembly.kinds import kind
from diffusion_jax.errors import UserError
from diffusion_jax.progress import progress
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.training import checkpoint, forensics, loop
from diffusion_jax.training.step import Now

ACTIVATIONS = {"layer": "layer", "size": "largest output", "bad": "not finite"}


def repro(config, workdir: str, step: int) -> bool:
    """Print the comparison and the tables; whether the step is not finite again."""
    root, k = Path(workdir).absolute(), config.training.steps_per_call
    report = forensics.read(root, step)
    dataset = folder.dataset(config, workdir, resumes=True)
    built = folder.for_training(config, dataset)
    parts = trainer.training(built)
    state = _start(config, parts, root, report["start"])
    batch = data.batches(
        dataset.train, batch_size=config.data.batch_size, seed=config.seed, flip=config.data.flip
    )

    def due(at):
        return batch(at + report["start"]["shift"])

    def call(state, at, run=parts.step, length=k):  # steps at, at + 1, ..., at + length - 1
        stacked = loop.stack(lambda i: due(at + i), length)(0)
        return run(state, parts.runner.put_batch(stacked, axis=1))

    begin, i = step // k * k, step % k
    with progress(max(begin - int(state.step), 1), "replaying", unit="steps") as advance:
        for at in range(int(state.step), begin, k):
            state, _ = call(state, at)
            advance(k)
    _, numbers = call(parts.runner.put_state(state), begin)
    numbers = jax.tree.map(lambda x: x[i], jax.device_get(numbers))
    again = bool(numbers["nonfinite"]["flag"])
    equal = (
        "the same numbers, bit for bit"
        if forensics.same(report, numbers)
        else "but NOT the report's numbers"
    )
    print(
        f"step {step}: the {report['what']} is not finite again, {equal}"
        if again
        else f"step {step} is finite now (loss {numbers['loss']:.6g}): suspect the machine, or a change of the code"
    )
    if i:  # the steps of the call before it, for the parameters that it began with
        short = config.copy_and_resolve_references().unlock()
        short.training.steps_per_call = i
        state, _ = call(state, begin, trainer.training(built._replace(config=short)).step, i)
    print(_activations(config, built, state, due(step), step))
    print(forensics.layer_table(report), end="")
    return again


def _start(config, parts, root, start):
    """The state where the replay begins: the checkpoint's, with the key that the run had."""
    key = jax.random.key(config.seed)
    state = parts.runner.init(parts.init, key)
    if start["checkpoint"] is not None:
        try:
            template = parts.runner.template(parts.init, key)
            state = checkpoint.restore(
                root / "checkpoints", template, step=start["checkpoint"]
            ).state
        except UserError as error:
            print(f"{error}; from the beginning, then", file=sys.stderr)
    words = jnp.asarray(start["key"], jnp.uint32)
    return parts.runner.put_state(
        state._replace(key=jax.random.wrap_key_data(words, impl=jax.random.key_impl(state.key)))
    )


def _activations(config, built, state, batch, step) -> str:
    """The largest output of each layer, in the order in which they finish, and the first that is
    not finite.
    """
    if "remat" in config.model:  # under it a layer is only traced
        config = config.copy_and_resolve_references().unlock()
        config.model.remat = "none"
        built = built._replace(
            model=experiment.assemble(config, built.shape, built.num_classes).model
        )
    rows = []

    def watch(run, args, kwargs, context):
        out = run(*args, **kwargs)
        if (
            isinstance(out, jax.Array)
            and not isinstance(out, jax.core.Tracer)
            and jnp.issubdtype(out.dtype, jnp.floating)
        ):
            path = "/".join(context.module.path) or "(the network)"
            rows.append(
                {
                    "layer": path,
                    "size": float(jnp.max(jnp.abs(out))),
                    "bad": int(jnp.sum(~jnp.isfinite(out))),
                }
            )
        return out

    keys = example_keys(jax.random.fold_in(state.key, step), len(batch["image"]), 0)
    with nn.intercept_methods(watch):
        kind.loss_fn(built)(
            state.params, jax.tree.map(jnp.asarray, batch), keys, Now(state.step, state.ema)
        )
    first = next((row["layer"] for row in rows if row["bad"]), None)
    what = (
        f"the first output that is not finite is that of {first}"
        if first
        else ("every layer's output is finite: it is the loss, or the way back, that is not")
    )
    return f"{what}\n\n{markdown_table(rows, ACTIVATIONS)}"
