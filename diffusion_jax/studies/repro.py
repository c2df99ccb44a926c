"""A training step with a non-finite loss, run again from its report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.assembly import datasets, preparation, trainer
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.core.arrays import example_keys
from diffusion_jax.core.errors import CommandExit, UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.training import forensics, loop, restoring
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import Now

ACTIVATIONS = {"layer": "layer", "size": "largest output", "bad": "not finite"}
FINITE_NOW = 1  # exit status where the step is finite this time


def repro(config: ConfigDict, *, workdir: str, step: int) -> None:
    """Repeat a step that was not finite, and print its numbers and its layers.

    Args:
      config: the config of the run.
      workdir: the folder of the run.
      step: the number of the step, as the run reported it.

    Raises:
      CommandExit: if the step is finite this time.
      UserError: where the run has no report of this step.
    """
    if not is_repeated(config, workdir, step):
        raise CommandExit(FINITE_NOW)


def is_repeated(config: ConfigDict, workdir: str, step: int) -> bool:
    """Repeat a step, print what `repro` prints, and return whether it is not finite again.

    Args:
      config: the config of the run.
      workdir: the folder of the run, which must have a report of this step.
      step: the number of the step, as the run reported it.
    """
    root = Path(workdir).absolute()
    report = forensics.read(root, step)
    dataset = workdirs.dataset(config, workdir, resumes=True)
    model = preparation.for_training(config, dataset)
    k = model.training.steps_per_call
    parts = trainer.training(model)
    state = _start(model, parts, root, report["start"])
    batch = datasets.training_batches(model, dataset)

    def due(at: int) -> Mapping[str, Any]:
        return batch(at + report["start"]["shift"])

    def call(state: TrainState, at: int, run: Callable = parts.step, length: int = k) -> Any:
        """Run steps at, at + 1, ..., at + length - 1."""
        stacked = loop.stack(lambda i: due(at + i), length)(0)
        return run(state, parts.runner.put_batch(stacked, axis=1))

    begin, i = step // k * k, step % k
    with progress(max(begin - int(state.step), 1), "replaying", unit="steps") as advance:
        for at in range(int(state.step), begin, k):
            state, _ = call(state, at)
            advance(k)
    _, numbers = call(parts.runner.put_state(state), begin)
    numbers = jax.tree.map(lambda x: x[i], jax.device_get(numbers))
    print(_verdict(report, numbers, step))
    if i:  # the steps of the call before this one, for the parameters that it began with
        short = model._replace(training=model.training._replace(steps_per_call=i))
        state, _ = call(state, begin, trainer.training(short).step, i)
    print(_activations(model, state, due(step), step))
    print(forensics.layer_table(report), end="")
    return bool(numbers["nonfinite"]["flag"])


def _verdict(report: Mapping[str, Any], numbers: Mapping[str, Any], step: int) -> str:
    """The line that compares the numbers of the step with those of its report."""
    if not numbers["nonfinite"]["flag"]:
        loss = numbers["loss"]
        return (
            f"step {step} is finite now (loss {loss:.6g}): suspect the machine, or a change of "
            "the code"
        )
    same = forensics.same(report, numbers)
    equal = "the same numbers, bit for bit" if same else "but NOT the report's numbers"
    return f"step {step}: the {report['what']} is not finite again, {equal}"


def _start(
    model: Experiment, parts: trainer.Training, root: Path, start: Mapping[str, Any]
) -> TrainState:
    """The state where the replay begins: the checkpoint's, with the key that the run had."""
    key = jax.random.key(model.seed)
    state = parts.runner.init(parts.init, key)
    if start["checkpoint"] is not None:
        try:
            template = parts.runner.template(parts.init, key)
            state = restoring.restore(
                root / "checkpoints", template, step=start["checkpoint"]
            ).state
        except UserError as error:
            print(f"{error}; the replay starts at the beginning", file=sys.stderr)
    words = jnp.asarray(start["key"], jnp.uint32)
    return parts.runner.put_state(
        state._replace(key=jax.random.wrap_key_data(words, impl=jax.random.key_impl(state.key)))
    )


def _activations(
    model: Experiment,
    state: TrainState,
    batch: Mapping[str, Any],
    step: int,
) -> str:
    """A table of the largest output of each layer, in the order in which the layers finish."""
    if "remat" in model.options:  # with it a layer is only traced, and has no values
        model = model._replace(model=model.model.clone(remat="none"))
    rows: list[dict[str, Any]] = []

    def watch(
        run: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        out = run(*args, **kwargs)
        if (
            isinstance(out, jax.Array)
            and not isinstance(out, jax.core.Tracer)
            and jnp.issubdtype(out.dtype, jnp.floating)
        ):
            path = "/".join(context.module.path) or "(the network)"
            size, bad = jnp.max(jnp.abs(out)), jnp.sum(~jnp.isfinite(out))
            rows.append({"layer": path, "size": float(size), "bad": int(bad)})
        return out

    keys = example_keys(jax.random.fold_in(state.key, step), len(batch["image"]), 0)
    with nn.intercept_methods(watch):
        model.kind.loss(model)(
            state.params, jax.tree.map(jnp.asarray, batch), keys, Now(state.step, state.ema)
        )
    first = next((row["layer"] for row in rows if row["bad"]), None)
    what = (
        f"the first output that is not finite is that of {first}"
        if first
        else "every layer's output is finite: the loss or the backward pass is not"
    )
    return f"{what}\n\n{markdown_table(rows, ACTIVATIONS)}"
