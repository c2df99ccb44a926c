"""Steps whose loss, gradient or update is not finite: how a step finds them, and what a run does.

`inspect` and `undo` are pure functions of a compiled step (make_train_step with forensics=True).
`NonFinite` ends a run, and `roll_back` gives the state from which it takes another course.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.training.state import TrainState

REACTIONS = ("stop", "skip", "rollback")  # the values of training.on_nonfinite
MAX_SKIPS = 10  # a run that skips so many steps in a row will not recover
MAX_ROLLBACKS = 3  # likewise, to the same checkpoint


# ---- in a compiled step
class Leaves(NamedTuple):
    """Sums of squares of every leaf, each (number of leaves,), in the order of the tree."""

    parameter: Array
    gradient: Array
    update: Array


def inspect(
    losses: Array,
    level: Array | None,
    squares: Leaves,
    offset: int | Array,
    axis_name: str | None,
) -> dict[str, Any]:
    """Find the values of a step that are not finite, and the numbers that help to explain them.

    Args:
      losses: (B,), of the local batch.
      level: (B,) noise levels (log-SNR), or None.
      squares: the sums of squares of the leaves of parameters, gradient and update.
      offset: the index of the first local example in the global batch.
      axis_name: the mapped axis under pmap.

    Returns:
      'flag', whether anything is not finite; 'gradient' and 'update', whether it is the first of
      the three that is not; 'example' and 'level', the index and noise level of the first example
      whose loss is not (-1 and NaN if there is none); 'losses' and 'levels' (B,) of the global
      batch; and 'layers', the norms of the leaves by kind.
    """
    none = jnp.iinfo(jnp.int32).max
    index = offset + jnp.arange(losses.shape[0], dtype=jnp.int32)
    first = jnp.min(jnp.where(jnp.isfinite(losses), none, index))
    first = first if axis_name is None else jax.lax.pmin(first, axis_name)
    found = first < none
    level = jnp.full_like(losses, jnp.nan) if level is None else level
    level_of_first = jnp.sum(jnp.where(index == first, level, 0.0))
    if axis_name is not None:
        level_of_first = jax.lax.psum(level_of_first, axis_name)
    bad_gradient = ~jnp.isfinite(jnp.sqrt(jnp.sum(squares.gradient)))
    bad_update = ~jnp.isfinite(jnp.sqrt(jnp.sum(squares.update)))

    def gathered(x: Array) -> Array:
        return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)

    return {
        "flag": found | bad_gradient | bad_update,
        "gradient": bad_gradient & ~found,
        "update": bad_update & ~bad_gradient & ~found,
        "example": jnp.where(found, first, -1),
        "level": jnp.where(found, level_of_first, jnp.nan),
        "losses": gathered(losses),
        "levels": gathered(level),
        "layers": {kind: jnp.sqrt(each) for kind, each in squares._asdict().items()},
    }


def undo(after: TrainState, before: TrainState, flag: Array) -> TrainState:
    """Return the state after a step, which keeps nothing but its number if the step failed.

    Args:
      after: the state after the step.
      before: the state before it.
      flag: a scalar of bool; True takes parameters, optimizer state and averages from `before`.
    """
    failed = arrays.once(flag.astype(jnp.float32)) > 0

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jax.lax.select_n(failed, a, b), new, old)

    return after._replace(
        params=keep(after.params, before.params),
        opt_state=keep(after.opt_state, before.opt_state),
        ema=keep(after.ema, before.ema),
    )


# ---- in a run
class NonFinite(UserError):
    """The loss, the gradient or the update of a step is not finite, and the run ends.

    The arguments `step`, `example` and `level` are attributes.

    Args:
      message: one line with the step and what to do.
      step: the step.
      example: the index in its batch of the first example whose loss is not finite, or None.
      level: the noise level of that example as log-SNR, or None.
    """

    def __init__(self, message: str, step: int, example: int | None, level: float | None) -> None:
        super().__init__(message)
        self.step, self.example, self.level = step, example, level


def kind(found: Mapping[str, Any]) -> str:
    """Name the first that is not finite of loss, gradient and update.

    Args:
      found: what `inspect` returns for a step that is not finite.
    """
    return "gradient" if found["gradient"] else "update" if found["update"] else "loss"


def error(step: int, found: Mapping[str, Any], skipped: int, saved: str) -> NonFinite:
    """The error for a step.

    Args:
      step: the step.
      found: what `inspect` says of it.
      skipped: the number of steps in a row that were skipped before.
      saved: where the last good checkpoint is, in words.
    """
    example, level = int(found["example"]), float(found["level"])
    what = {
        "loss": "loss",
        "gradient": "gradient (the loss is finite)",
        "update": "update (the gradient is finite)",
    }[kind(found)]
    before = f" ({skipped} steps in a row were skipped)" if skipped else ""
    where = f", example {example} of its batch" if example >= 0 else ""
    where += (
        f", at noise level log-SNR {level:.3f}" if np.isfinite(level) else ", noise level unknown"
    )
    return NonFinite(
        f"the {what} is not finite at step {step}{before}{where}; {saved}; lower "
        "optimizer.learning_rate or optimizer.clip",
        step,
        example if example >= 0 else None,
        level if np.isfinite(level) else None,
    )


class Rollback(NamedTuple):
    """The progress of a run after rollbacks, in plain numbers for the checkpoint's `extra`.

    Attributes:
      to: the step of the checkpoint to which it last went back.
      tries: how often it went back to that checkpoint.
      shift: how far the data are ahead of the steps: step k takes the batch of position k + shift.
    """

    to: int | None = None
    tries: int = 0
    shift: int = 0


def roll_back(
    failure: NonFinite, now: Rollback, state: TrainState, steps_per_call: int
) -> tuple[TrainState, Rollback]:
    """The run that resumes from the last good checkpoint, past the data and noise of a failed step.

    The data resume after the call of that step (as Chowdhery et al. 2022, PaLM, section 5.1, did by
    hand), and the key is folded with the number of tries, which changes all noise from here on.
    Both depend on the checkpoint and the failed step alone, so a run that is killed and fails there
    again rolls back alike.

    Args:
      failure: the error of the failed step.
      now: where the run stood when it failed.
      state: the state of the last good checkpoint.
      steps_per_call: the number of steps in one call.

    Raises:
      NonFinite: the given error, after MAX_ROLLBACKS attempts from the same checkpoint.
    """
    to = int(state.step)
    tries = now.tries + 1 if now.to == to else 1
    if tries > MAX_ROLLBACKS:
        raise NonFinite(
            f"{failure}; it failed after each of {MAX_ROLLBACKS} rollbacks to step {to}",
            failure.step,
            failure.example,
            failure.level,
        ) from None
    after = (failure.step // steps_per_call + 1) * steps_per_call
    # steps fold in numbers from 0 up, so numbers from the top are free
    key = jax.jit(jax.random.fold_in)(state.key, np.uint32(streams.ROLLBACK - tries))
    return state._replace(key=key), Rollback(to, tries, now.shift + after - to)
