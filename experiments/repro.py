"""Repeat a training step that was not finite, and show where in the network it began.

python -m experiments.repro --workdir=runs/a --step=153000

Restores the checkpoint that the report names (nonfinite/step_N, training/forensics.py), trains to the step, which is exact,
and compares its numbers with the report's, bit for bit. Then the network runs once more, layer by layer. Exit status 1 if the
step is finite this time: then suspect the machine, or that the run's code or software have changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import cli

ACTIVATIONS = {"layer": "layer", "size": "largest output", "bad": "not finite"}


def repro(config, workdir: str, step: int) -> bool:
    """Print the comparison and the tables; whether the step is not finite again."""
    import jax

    from diffusion_jax import data, experiment
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation.progress import progress
    from diffusion_jax.training import forensics, loop

    root, k = Path(workdir).absolute(), config.training.steps_per_call
    report = forensics.read(root, step)
    dataset = folder.dataset(config, workdir, resumes=True)
    built = folder.for_training(config, dataset)
    parts = experiment.training(built)
    state = _start(config, parts, root, report["start"])
    batch = data.batches(dataset.train, batch_size=config.data.batch_size, seed=config.seed, flip=config.data.flip)
    due = lambda at: batch(at + report["start"]["shift"])  # noqa: E731

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
    equal = "the same numbers, bit for bit" if forensics.same(report, numbers) else "but NOT the report's numbers"
    print(f"step {step}: the {report['what']} is not finite again, {equal}" if again else
          f"step {step} is finite now (loss {numbers['loss']:.6g}): suspect the machine, or a change of the code")  # fmt: skip
    if i:  # the steps of the call before it, for the parameters that it began with
        short = config.copy_and_resolve_references().unlock()
        short.training.steps_per_call = i
        state, _ = call(state, begin, experiment.training(built._replace(config=short)).step, i)
    print(_activations(config, built, state, due(step), step))
    print(forensics.layer_table(report), end="")
    return again


def _start(config, parts, root, start):
    """The state where the replay begins: the checkpoint's, with the key that the run had."""
    import jax
    import jax.numpy as jnp

    from diffusion_jax.errors import UserError
    from diffusion_jax.training import checkpoint

    key = jax.random.key(config.seed)
    state = parts.runner.init(parts.init, key)
    if start["checkpoint"] is not None:
        try:
            template = parts.runner.template(parts.init, key)
            state = checkpoint.restore(root / "checkpoints", template, step=start["checkpoint"]).state
        except UserError as error:
            print(f"{error}; from the beginning, then", file=sys.stderr)
    words = jnp.asarray(start["key"], jnp.uint32)
    return parts.runner.put_state(state._replace(key=jax.random.wrap_key_data(words, impl=jax.random.key_impl(state.key))))


def _activations(config, built, state, batch, step) -> str:
    """The largest output of each layer, in the order in which they finish, and the first that is not finite."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from diffusion_jax import experiment
    from diffusion_jax.arrays import example_keys
    from diffusion_jax.provenance import markdown_table
    from diffusion_jax.training.step import Now

    if "remat" in config.model:  # under it a layer is only traced
        config = config.copy_and_resolve_references().unlock()
        config.model.remat = "none"
        built = built._replace(model=experiment.assemble(config, built.shape, built.num_classes).model)
    rows = []

    def watch(run, args, kwargs, context):
        out = run(*args, **kwargs)
        if isinstance(out, jax.Array) and not isinstance(out, jax.core.Tracer) and jnp.issubdtype(out.dtype, jnp.floating):
            path = "/".join(context.module.path) or "(the network)"
            rows.append({"layer": path, "size": float(jnp.max(jnp.abs(out))), "bad": int(jnp.sum(~jnp.isfinite(out)))})
        return out

    keys = example_keys(jax.random.fold_in(state.key, step), len(batch["image"]), 0)
    with nn.intercept_methods(watch):
        experiment.loss_fn(built)(state.params, jax.tree.map(jnp.asarray, batch), keys, Now(state.step, state.ema))
    first = next((row["layer"] for row in rows if row["bad"]), None)
    what = f"the first output that is not finite is that of {first}" if first else (
        "every layer's output is finite: it is the loss, or the way back, that is not")  # fmt: skip
    return f"{what}\n\n{markdown_table(rows, ACTIVATIONS)}"


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of the run", required=True)
    cli.integer_flag("step", None, "the step, as the run named it", 0, 10**9, required=True)
    cli.launch(lambda config: repro(config, flags.FLAGS.workdir, flags.FLAGS.step) or sys.exit(1), config="workdir", short=())
