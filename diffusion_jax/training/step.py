"""One pure training step: gradient, optimizer, EMAs, and every number worth watching, for any loss
function.

LossFn = (params, batch, keys, now) -> (losses, metrics)
    batch: a dict of (B, ...) arrays; keys: (B,), one key per example; losses: (B,); metrics: {name:
    (B,)}, all of it per example. now: Now, what else of the run a loss may see: how far it is,
    averages of the parameters, a teacher. metrics['level'], where given, is each example's noise
    level (log-SNR), by which the loss is binned.

The noise of an example depends on (key, step, its index in the global batch) and on nothing else,
so one device, a mesh, pmap and any accumulation compute the same step up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.arrays import example_keys, platform
from diffusion_jax.errors import UserError
from diffusion_jax.training.ema import Ema
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, Batch, Key, Params


class Now(NamedTuple):
    """The run at one step, besides its parameters. step: int32 scalar; ema: the state's averages;
    train: False in evaluation.
    """

    step: Array
    ema: dict[str, Params]
    train: bool = True


LossFn = Callable[[Params, Batch, Key, Now], tuple[Array, dict[str, Array]]]
Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Levels(NamedTuple):
    """The bins of the loss by noise level: equal in log-SNR; what lies outside counts in the first
    or last bin.
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
) -> Step:
    """(state, batch) -> (state, metrics), pure. axis_name: the mapped axis under pmap, where B is
    the local batch.

    The gradient is that of the mean loss of the global batch, summed over `accumulate` microbatches
    of B / accumulate examples.
    metrics: means over the global batch of 'loss' and of each metric of loss_fn (but 'level');
    'grad_norm' (before clipping), 'update_norm', 'param_norm', 'learning_rate' (given a schedule);
    'loss_by_level' {'edges' (n + 1,), 'sum' (n,), 'count' (n,)}; 'nonfinite' (`_nonfinite`):
    whether the loss, the gradient or the update is not finite, and what is needed to find out why.
    A non-finite step leaves params, opt_state and ema as they were; the step number goes on. Raises
    UserError, when traced, if B is not divisible by accumulate.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        size = jax.tree.leaves(batch)[0].shape[0]
        devices, offset = _place(axis_name, size)
        keys = example_keys(jax.random.fold_in(state.key, state.step), size, offset)
        now = Now(state.step, state.ema)
        grads, losses, examples = _gradient(loss_fn, state.params, batch, keys, now, accumulate)
        grads = _mean_over(axis_name, grads)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        images_seen = state.step.astype(jnp.float32) * (size * devices)
        averages = ema.update(state.ema, params, images_seen, size * devices)

        squares = {
            "parameter": _squares(state.params),
            "gradient": _squares(grads),
            "update": _squares(updates),
        }
        norms = {kind: jnp.sqrt(jnp.sum(each)) for kind, each in squares.items()}
        nonfinite = _nonfinite(losses, examples.get("level"), norms, offset, axis_name)
        nonfinite["layers"] = {kind: jnp.sqrt(each) for kind, each in squares.items()}

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(nonfinite["flag"], b, a), new, old)

        metrics = _summary(losses, examples, levels, axis_name) | {
            "grad_norm": norms["gradient"],
            "update_norm": norms["update"],
            "param_norm": jnp.sqrt(jnp.sum(_squares(params))),
            "nonfinite": nonfinite,
        }
        if schedule is not None:
            metrics["learning_rate"] = schedule(state.step)
        state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(averages, state.ema),
            key=state.key,
        )
        return state, metrics

    return step


def multi_step(step: Step, n: int = 1) -> Step:
    """n steps in one dispatch: scans over a leading axis of the batch, of length n; metrics come
    out as (n, ...).
    """

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        chex.assert_tree_shape_prefix(batches, (n,))
        return scan(step, state, batches)

    return steps


def scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """jax.lax.scan for bodies that take gradients: a loop on accelerators, written out on CPUs.

    XLA's CPU compiler makes the backward pass of a convolution 50 times slower inside a loop than
    outside (measured, jax 0.10 to 0.12); the forward pass is the same. So on a CPU keep the length
    small: the program grows with it.
    """
    if platform() != "cpu":
        return jax.lax.scan(body, carry, xs)
    outputs = []
    for i in range(
        len(jax.tree.leaves(xs)[0])
    ):  # not scan(unroll=True), which still loops where there is one step
        carry, output = body(carry, jax.tree.map(lambda x: x[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *rows: jnp.stack(rows), *outputs)


def make_eval_step(
    loss_fn: LossFn, *, axis_name: str | None = None, levels: Levels = Levels()
) -> Callable[[TrainState, Batch, Key], Metrics]:
    """(state, batch, key) -> global means of the loss and of each metric, and 'loss_by_level' as in
    training.

    state: one whose params are the weights to be judged; its opt_state and key are not used.

    Example i draws from fold_in(key, i): given the same key, evaluations at different steps are
    compared on the same noise.
    """

    def step(state: TrainState, batch: Batch, key: Key) -> Metrics:
        size = jax.tree.leaves(batch)[0].shape[0]
        _, offset = _place(axis_name, size)
        losses, examples = loss_fn(
            state.params,
            batch,
            example_keys(key, size, offset),
            Now(state.step, state.ema, train=False),
        )
        return _summary(losses, examples, levels, axis_name)

    return step


def _place(axis_name: str | None, size: int) -> tuple[int, int | Array]:
    """(number of devices the batch is spread over, index of this device's first example in the
    global batch).
    """
    if axis_name is None:
        return 1, 0
    return jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name) * size


def _gradient(loss_fn: LossFn, params: Params, batch: Batch, keys: Key, now: Now, parts: int):
    """(gradient of the mean loss, losses (B,), metrics (B,)), in `parts` microbatches of every
    parts-th example.

    Strided, because under a mesh each device holds a contiguous run of rows: every microbatch then
    takes its share from each device and no row has to move.
    """

    def mean_loss(params, batch, keys):
        losses, metrics = loss_fn(params, batch, keys, now)
        return jnp.mean(losses), (losses, metrics)

    gradient = jax.grad(mean_loss, has_aux=True)
    if parts == 1:
        grads, (losses, metrics) = gradient(params, batch, keys)
        return grads, losses, metrics

    size = keys.shape[0]
    if parts < 1 or size % parts:
        raise UserError(
            f"accumulate={parts} does not divide the batch of {size} examples; choose a divisor of it"
        )

    def split(x):
        return jnp.swapaxes(x.reshape((size // parts, parts) + x.shape[1:]), 0, 1)

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape((size,) + x.shape[2:])

    def body(total, part):
        grads, per_example = gradient(params, *part)
        return jax.tree.map(lambda t, g: t + g / parts, total, grads), per_example

    grads, per_example = scan(
        body, jax.tree.map(jnp.zeros_like, params), jax.tree.map(split, (batch, keys))
    )
    return grads, *jax.tree.map(join, per_example)


def _summary(
    losses: Array, examples: dict[str, Array], levels: Levels, axis_name: str | None
) -> Metrics:
    """Global means of the loss and of each per-example metric, and the loss by level as sums and
    counts.
    """
    named = {"loss": losses} | {key: value for key, value in examples.items() if key != "level"}
    means = _mean_over(axis_name, {key: jnp.mean(value) for key, value in named.items()})
    if "level" not in examples:
        return means
    low, high, bins = levels
    index = jnp.clip(jnp.floor((examples["level"] - low) / (high - low) * bins), 0, bins - 1)
    member = index[:, None] == jnp.arange(bins)
    # a masked sum of (B, bins), for scatters of floats are not deterministic on GPUs
    total = jnp.sum(jnp.where(member, losses[:, None], 0.0), axis=0)
    sums = _sum_over(axis_name, {"sum": total, "count": jnp.sum(member, axis=0, dtype=jnp.float32)})
    return means | {
        "loss_by_level": {"edges": np.linspace(low, high, bins + 1, dtype=np.float32)} | sums
    }


def _nonfinite(
    losses: Array, level: Array | None, norms: dict[str, Array], offset, axis_name: str | None
) -> Metrics:
    """What is not finite: {'flag': anything, 'gradient': first the gradient, 'update': first the
    update}; where: {'example', 'level'}, index and noise level of the first example whose loss is
    not (-1 and NaN where there is none); and for all examples of the global batch {'losses' (B,),
    'levels' (B,)}. The step adds 'layers', the norm of each leaf of the parameters, the gradient
    and the update, in the order of the tree.
    """
    none = jnp.iinfo(jnp.int32).max
    index = offset + jnp.arange(losses.shape[0], dtype=jnp.int32)
    first = jnp.min(jnp.where(jnp.isfinite(losses), none, index))
    first = first if axis_name is None else jax.lax.pmin(first, axis_name)
    found = first < none
    level = jnp.full_like(losses, jnp.nan) if level is None else level
    bad_gradient, bad_update = ~jnp.isfinite(norms["gradient"]), ~jnp.isfinite(norms["update"])

    def whole(x):
        return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)

    return {
        "flag": found | bad_gradient | bad_update,
        "gradient": bad_gradient & ~found,
        "update": bad_update & ~bad_gradient & ~found,
        "example": jnp.where(found, first, -1),
        "level": jnp.where(
            found, _sum_over(axis_name, jnp.sum(jnp.where(index == first, level, 0.0))), jnp.nan
        ),
        "losses": whole(losses),
        "levels": whole(level),
    }


def _squares(tree: Any) -> Array:
    """The sum of squares of each leaf, in float32: (number of leaves,)."""
    return jnp.stack([jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)])


def _mean_over(axis_name: str | None, tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _sum_over(axis_name: str | None, tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
