"""One pure training step for any loss function: gradient, optimizer, EMAs and metrics.

    LossFn = (params, batch, keys, now) -> (losses, metrics)

A batch is a dict of (B, ...) arrays, keys (B,) holds one key per example, losses are (B,), and
metrics are {name: (B,)}, all of it per example. `now` (`Now`) is what else of the run a loss may
use: the step, the averages of the parameters, a teacher. metrics['level'], where given, is each
example's noise level (log-SNR), by which the loss is binned; OWN names those that are not reported.

The noise of an example depends on (key, step, its index in the global batch) and on nothing else,
so one device, a mesh, pmap and any accumulation compute the same step up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.core.arrays import example_keys
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Batch, Key, Params
from diffusion_jax.training import loss_scale, nonfinite
from diffusion_jax.training.ema import Ema
from diffusion_jax.training.loss_scale import LossScale
from diffusion_jax.training.state import TrainState


class Now(NamedTuple):
    """The run at one step, besides its parameters.

    Attributes:
      step: int32 scalar, the number of steps done.
      ema: the averages of the state, by name.
      train: False in evaluation.
    """

    step: Array
    ema: dict[str, Params]
    train: bool = True


LossFn = Callable[[Params, Batch, Key, Now], tuple[Array, dict[str, Array]]]
# (averages, metrics of the examples of the global batch) -> averages
Remember = Callable[[dict[str, Params], dict[str, Array]], dict[str, Params]]
# metrics of the loss that are for the step itself and are not reported
OWN = ("level", "time", "unweighted")
Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Levels(NamedTuple):
    """The bins of the loss by noise level, of equal width in log-SNR.

    Levels below `low` count in the first bin, those above `high` in the last.
    """

    low: float = -12.0
    high: float = 12.0
    bins: int = 12


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    ema: Ema,
    *,
    schedule: Callable[[Array], Array] | None = None,
    axis_name: str | None = None,
    accumulate: int = 1,
    levels: Levels = Levels(),
    forensics: bool = False,
    constrain: Callable[[Params], Params] | None = None,
    remember: Remember | None = None,
    scaling: LossScale | None = None,
) -> Step:
    """A pure function (state, batch) -> (state, metrics): one step of stochastic gradient descent.

    The gradient is that of the mean loss of the global batch. The metrics are means over the global
    batch of 'loss' and of each metric of loss_fn but 'level'; 'grad_norm' (before clipping),
    'update_norm', 'param_norm'; and 'loss_by_level' {'edges' (n + 1,), 'sum', 'count' (n,)}.

    Args:
      loss_fn: the loss; see the module.
      tx: the optimizer.
      ema: the averages of the parameters.
      schedule: step -> learning rate, to be reported as 'learning_rate'.
      axis_name: the mapped axis under pmap, where B is the local batch.
      accumulate: the gradient is summed over so many microbatches of B / accumulate examples.
      levels: the bins of the loss by noise level.
      forensics: look for values that are not finite. The metrics then include 'nonfinite'
        (`nonfinite.inspect`), and a step whose loss, gradient or update is not finite leaves
        params, opt_state and ema as they were; the number of the step still advances.
      constrain: a projection, such as EDM2's forced weight normalization, of the parameters at
        which the gradient is computed and to which the update is added.
      remember: what of the examples' metrics is kept in the averages of the state, such as the
        losses by which times are drawn (objectives/resampling.py).
      scaling: of the loss, see loss_scale.py; tx is then its `with_state`, and forensics are on.

    Returns:
      The step. It raises UserError, when traced, if B is not divisible by accumulate.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        size, offset, keys = _examples(axis_name, state, batch)
        before = state._replace(params=constrain(state.params)) if constrain else state
        scale = loss_scale.scale_of(scaling, state.opt_state)
        gradient = _gradient(loss_fn, Now(state.step, state.ema), accumulate, scale)
        grads, losses, examples = gradient(before.params, batch, keys)
        grads, replaced = loss_scale.unscaled(scaling, _mean_over(axis_name, grads), scale)
        updates, after = _updated(before, grads, tx, ema, size)
        after = _remembering(after, remember, examples, axis_name)
        squares = nonfinite.Leaves(_squares(before.params), _squares(grads), _squares(updates))
        metrics = _summary(losses, examples, levels, axis_name) | _norms(squares, after.params)
        metrics |= _rates(schedule, scaling, state)
        if forensics or scaling:
            found = nonfinite.inspect(losses, examples.get("level"), squares, offset, axis_name)
            metrics["nonfinite"] = loss_scale.judged(scaling, found, scale, replaced)
            after = loss_scale.settled(scaling, state, after, metrics["nonfinite"])
        return after, metrics

    return step


def multi_step(step: Step, n: int = 1) -> Step:
    """Run several steps in one dispatch, by a scan over a leading axis of the batch.

    The metrics have a leading axis of the same length.

    Args:
      step: a single step.
      n: number of steps in a call; the function raises ValueError for a batch of another number.
    """

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        if any(x.shape[:1] != (n,) for x in jax.tree.leaves(batches)):
            raise ValueError(f"the arrays of {n} batches need a leading axis of that length")
        return scan(step, state, batches)

    return steps


def scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """jax.lax.scan, which is no loop where there is one iteration.

    Args:
      body: (carry, x) -> (carry, output), as jax.lax.scan takes it.
      carry: the initial carry.
      xs: a tree of arrays whose first axis is scanned over, of length 1 or more.

    Returns:
      (the last carry, the outputs stacked along a new first axis).
    """
    if len(jax.tree.leaves(xs)[0]) > 1:
        return jax.lax.scan(body, carry, xs)
    # XLA's CPU orders the axes of convolutions outside of loops alone (models/convolution.py)
    carry, output = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], output)


def make_eval_step(
    loss_fn: LossFn, *, axis_name: str | None = None, levels: Levels = Levels()
) -> Callable[[TrainState, Batch, Key], Metrics]:
    """A pure function (state, batch, key) -> metrics: the loss, evaluated and not trained on.

    Example i draws from fold_in(key, i): with the same key, evaluations at different steps are
    compared on the same noise.

    Args:
      loss_fn: the loss; see the module.
      axis_name: the mapped axis under pmap.
      levels: the bins of the loss by noise level.

    Returns:
      The function. The parameters of its state are the weights to be judged; opt_state and key are
      not used. Its metrics are global means of the loss and of each metric, and 'loss_by_level' as
      in training.
    """

    def step(state: TrainState, batch: Batch, key: Key) -> Metrics:
        size = jax.tree.leaves(batch)[0].shape[0]
        _, offset = _place(axis_name, size)
        now = Now(state.step, state.ema, train=False)
        keys = example_keys(key, size, offset)
        losses, examples = loss_fn(state.params, batch, keys, now)
        return _summary(losses, examples, levels, axis_name)

    return step


def _examples(axis_name: str | None, state: TrainState, batch: Batch) -> tuple[int, Any, Key]:
    """The size of the global batch, the index of the first local example, and the local keys."""
    size = jax.tree.leaves(batch)[0].shape[0]
    devices, offset = _place(axis_name, size)
    keys = example_keys(jax.random.fold_in(state.key, state.step), size, offset)
    return size * devices, offset, keys


def _rates(
    schedule: Callable[[Array], Array] | None, scaling: LossScale | None, state: TrainState
) -> Metrics:
    """The learning rate and the scale of the loss of a step, where they are known and change."""
    rate = {} if schedule is None else {"learning_rate": schedule(state.step)}
    return rate | loss_scale.reported(scaling, state.opt_state)


def _place(axis_name: str | None, size: int) -> tuple[int, int | Array]:
    """The number of devices of a batch, and the index of this device's first example in it."""
    if axis_name is None:
        return 1, 0
    return jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name) * size


def _updated(
    state: TrainState, grads: Params, tx: optax.GradientTransformation, ema: Ema, batch: int
) -> tuple[Params, TrainState]:
    """The update by the gradient of a global batch of this size, and the state after it."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    images_seen = state.step.astype(jnp.float32) * batch
    averages = ema.update(state.ema, params, images_seen, batch)
    return updates, TrainState(state.step + 1, params, opt_state, averages, state.key)


def _gradient(
    loss_fn: LossFn, now: Now, parts: int, scale: Array | None
) -> Callable[[Params, Batch, Key], tuple[Params, Array, dict[str, Array]]]:
    """The gradient of the mean loss, in `parts` microbatches of every parts-th example.

    With a scale it is the gradient of so many times the loss.

    Strided, because under a mesh each device holds a contiguous run of rows: every microbatch then
    takes its share from each device, and no row has to move.

    Returns:
      (params, batch, keys) -> the gradient, the losses (B,), and the metrics (B,).
    """

    def mean_loss(params: Params, batch: Batch, keys: Key) -> tuple[Array, tuple]:
        losses, metrics = loss_fn(params, batch, keys, now)
        mean = jnp.mean(losses)
        return mean if scale is None else scale * mean, (losses, metrics)

    gradient = jax.grad(mean_loss, has_aux=True)

    def whole(params: Params, batch: Batch, keys: Key) -> tuple[Params, Array, dict[str, Array]]:
        grads, (losses, metrics) = gradient(params, batch, keys)
        return grads, losses, metrics

    def in_parts(params: Params, batch: Batch, keys: Key) -> tuple[Params, Array, dict[str, Array]]:
        size = keys.shape[0]
        if parts < 1 or size % parts:
            raise UserError(
                f"accumulate={parts} does not divide the batch of {size} examples; choose a "
                "divisor of it"
            )

        def split(x: Array) -> Array:
            return jnp.swapaxes(x.reshape((size // parts, parts) + x.shape[1:]), 0, 1)

        def join(x: Array) -> Array:
            return jnp.swapaxes(x, 0, 1).reshape((size,) + x.shape[2:])

        def body(total: Params, part: tuple) -> tuple[Params, tuple]:
            grads, per_example = gradient(params, *part)
            return jax.tree.map(lambda t, g: t + g / parts, total, grads), per_example

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, per_example = scan(body, zeros, jax.tree.map(split, (batch, keys)))
        return grads, *jax.tree.map(join, per_example)

    return whole if parts == 1 else in_parts


def _summary(
    losses: Array, examples: dict[str, Array], levels: Levels, axis_name: str | None
) -> Metrics:
    """Global means of the loss and of each metric, and the loss by level as sums and counts."""
    named = {"loss": losses} | {k: value for k, value in examples.items() if k not in OWN}
    means = _mean_over(axis_name, {key: jnp.mean(value) for key, value in named.items()})
    if "level" not in examples:
        return means
    low, high, bins = levels
    index = jnp.clip(jnp.floor((examples["level"] - low) / (high - low) * bins), 0, bins - 1)
    member = index[:, None] == jnp.arange(bins)
    # a masked sum of (B, bins), because scatters of floats are not deterministic on GPUs
    total = jnp.sum(jnp.where(member, losses[:, None], 0.0), axis=0)
    sums = {"sum": total, "count": jnp.sum(member, axis=0, dtype=jnp.float32)}
    sums = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    edges = np.linspace(low, high, bins + 1, dtype=np.float32)
    return means | {"loss_by_level": {"edges": edges} | sums}


def _squares(tree: Any) -> Array:
    """The sum of squares of each leaf in float32: (number of leaves,)."""

    def squares(x: Array) -> Array:  # the functions of jnp take three times as long to trace
        x = jax.lax.square(x.astype(jnp.float32))
        return jax.lax.reduce_sum(x, tuple(range(x.ndim)))

    return jnp.stack([squares(x) for x in jax.tree.leaves(tree)])


def _norms(squares: nonfinite.Leaves, params: Params) -> Metrics:
    """The norms of the gradient, of the update and of the parameters after it."""
    return {
        "grad_norm": jnp.sqrt(jnp.sum(squares.gradient)),
        "update_norm": jnp.sqrt(jnp.sum(squares.update)),
        "param_norm": jnp.sqrt(jnp.sum(_squares(params))),
    }


def _remembering(
    state: TrainState,
    remember: Remember | None,
    examples: dict[str, Array],
    axis_name: str | None,
) -> TrainState:
    """The state with what is kept of the examples of the global batch, which stay in order."""
    if not remember:
        return state
    if axis_name is not None:
        examples = {
            key: jax.lax.all_gather(x, axis_name, tiled=True) for key, x in examples.items()
        }
    return state._replace(ema=remember(state.ema, examples))


def _mean_over(axis_name: str | None, tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
