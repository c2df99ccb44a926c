"""Scaling of the loss, for networks that compute in float16 (Micikevicius et al. 2018, sec. 3.2).

    g = grad(2^s L) / 2^s

float16 has no numbers below 2^-24, so small gradients inside such a network would be 0, and none
above 65504, so large ones are infinite. The parameters, their gradient and the optimizer are
float32, so the division is exact enough in any case.

    dynamic()        s rises with every step and falls where the scaled gradient overflows
    fixed(100.0)     2^s is constant

A step overflows if its gradient is not finite while its loss is, at a scale above 1. Such a step
changes nothing but s. It is counted in the metrics ('overflows'), and no reaction to steps that are
not finite follows (nonfinite.py). At a scale of 1 there is nothing left to lower, so a gradient
that stays bad meets that reaction after s steps. s is part of the optimizer's state (`Scaled`), so
a resumed run has it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array, Params
from diffusion_jax.training import nonfinite
from diffusion_jax.training.state import TrainState


class LossScale(NamedTuple):
    """How the loss is scaled.

    Attributes:
      start: s of the first step.
      growth: added to s after a step without an overflow.
      fall: subtracted from s after a step with one; 0 where s never changes.
      infinity: what an infinite number of the scaled gradient becomes, with its sign; NaN becomes
        0. None keeps both.
    """

    start: float
    growth: float = 0.0
    fall: float = 0.0
    infinity: float | None = None


class Scaled(NamedTuple):
    """The state of an optimizer under a dynamic scale.

    Attributes:
      log2_scale: s, a float32 scalar.
      optimizer: the state of the optimizer itself.
    """

    log2_scale: Array
    optimizer: Any


def dynamic(start: float = 20.0, growth: float = 0.001) -> LossScale:
    """A scale as large as the gradient allows (Dhariwal & Nichol 2021, ADM's program).

    Args:
      start: log2 of the scale of the first step.
      growth: added to log2 of the scale after each step; 1 is subtracted after an overflow.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("loss_scale.dynamic", start=(start, 0, 60), growth=(growth, 0, 1))
    return LossScale(start, growth, fall=1.0)


def fixed(scale: float = 1.0, replace: bool = False, infinity: float = 0.0) -> LossScale:
    """A constant scale (Karras et al. 2022, 2024, the programs of EDM and EDM2).

    Args:
      scale: the factor of the loss.
      replace: whether numbers of the scaled gradient that are not finite are replaced, NaN by 0,
        instead of the whole step being skipped or ending the run.
      infinity: what replaces an infinite number, with its sign: 0 in EDM2's program, 1e5 in EDM's.

    Raises:
      UserError: for a number out of its range.
    """
    need_ranges("loss_scale.fixed", scale=(scale, 2.0**-60, 2.0**60), infinity=(infinity, 0, 1e30))
    return LossScale(math.log2(scale), infinity=infinity if replace else None)


def with_state(
    scaling: LossScale | None, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimizer whose state also holds a scale that changes.

    Args:
      scaling: how the loss is scaled; None, and a constant scale, leave the optimizer as it is.
      tx: the optimizer.
    """
    if not scaling or not scaling.fall:
        return tx

    def init(params: Params) -> Scaled:
        return Scaled(jnp.float32(scaling.start), tx.init(params))

    def update(grads: Params, state: Scaled, params: Params | None = None) -> tuple[Params, Scaled]:
        updates, own = tx.update(grads, state.optimizer, params)
        return updates, state._replace(optimizer=own)

    return optax.GradientTransformation(init, update)


def scale_of(scaling: LossScale | None, opt_state: Any) -> Array | None:
    """The factor of the loss, a float32 scalar; None where the loss is not scaled.

    Args:
      scaling: how the loss is scaled; None is not at all, here and below.
      opt_state: the state of the optimizer.
    """
    if not scaling:
        return None
    return jnp.exp2(opt_state.log2_scale) if scaling.fall else jnp.float32(2.0**scaling.start)


def unscaled(
    scaling: LossScale | None, grads: Params, scale: Array | None
) -> tuple[Params, Array | bool]:
    """The gradient of the loss itself, with replaced numbers where the scaling has them.

    Args:
      scaling: how the loss is scaled.
      grads: the gradient of the scaled loss of the global batch.
      scale: the factor of the loss.

    Returns:
      The gradient, and whether numbers of it were replaced, a bool scalar.
    """
    if not scaling:
        return grads, False
    inverse, replaced = arrays.once(1 / scale), jnp.bool_(False)
    if scaling.infinity is not None:
        finite = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]
        replaced = ~jnp.all(jnp.stack(finite))
        most = scaling.infinity
        grads = jax.tree.map(lambda g: jnp.nan_to_num(g, posinf=most, neginf=-most), grads)
    return jax.tree.map(lambda g: g * inverse, grads), replaced


def judged(
    scaling: LossScale | None, found: dict[str, Any], scale: Array | None, replaced: Array | bool
) -> dict[str, Any]:
    """What was found in a step that is not finite, with overflows told apart.

    Args:
      scaling: how the loss is scaled.
      found: what `nonfinite.inspect` returns.
      scale: the factor of the loss.
      replaced: whether numbers of the gradient were replaced.

    Returns:
      `found` with 'overflow' and 'replaced', bool scalars. A step with an overflow has no 'flag'.
    """
    if not scaling:
        return found
    overflow = found["gradient"] & (scale > 1) & bool(scaling.fall)
    return found | {
        "flag": found["flag"] & ~overflow,
        "gradient": found["gradient"] & ~overflow,
        "overflow": overflow,
        "replaced": replaced & ~found["flag"],
    }


def reported(scaling: LossScale | None, opt_state: Any) -> dict[str, Array]:
    """The metrics of a scale that changes: {'log2_loss_scale': s}.

    Args:
      scaling: how the loss is scaled.
      opt_state: the state of the optimizer.
    """
    return {"log2_loss_scale": opt_state.log2_scale} if scaling and scaling.fall else {}


def settled(
    scaling: LossScale | None, before: TrainState, after: TrainState, found: dict[str, Any]
) -> TrainState:
    """The state after a step: undone if the step failed, and with the scale of the next one.

    Args:
      scaling: how the loss is scaled.
      before: the state before the step.
      after: the state that the step would give.
      found: what `judged` returns. A step that is not finite for another reason keeps the scale.
    """
    if not scaling or not scaling.fall:
        return nonfinite.undo(after, before, found["flag"])
    after = nonfinite.undo(after, before, found["flag"] | found["overflow"])
    s = before.opt_state.log2_scale
    next_s = jnp.where(found["overflow"], jnp.maximum(s - scaling.fall, 0.0), s + scaling.growth)
    next_s = jnp.where(found["flag"], s, next_s)
    return after._replace(opt_state=after.opt_state._replace(log2_scale=next_s))


# The members of the family, which a config may name.
LOSS_SCALES = (dynamic, fixed)
