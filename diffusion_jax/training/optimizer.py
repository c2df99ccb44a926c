"""Any optax optimizer by name, with a learning-rate schedule and clipping by global norm."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
from typing import Any

import jax.numpy as jnp
import optax

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array

Schedule = Callable[[Array], Array]  # step -> learning rate
DECAYS = ("constant", "cosine", "linear", "rsqrt")

# optimizers of optax that need more than a gradient, parameters and a scheduled rate
LEFT_OUT = {
    "lbfgs",  # needs the loss function
    "noisy_sgd",  # needs a key
    "contrib.dpsgd",  # needs per-example gradients
    "rprop",  # the rate must be a number
    "sm3",  # likewise
    "optimistic_adam",  # deprecated for optimistic_adam_v2
}


def make_optimizer(
    name: str = "adamw",
    *,
    learning_rate: float,
    total_steps: int,
    warmup: int = 0,
    schedule: str = "constant",
    final: float = 0.0,
    decay_from: int | None = None,
    clip: float = 1.0,
    weight_decay: float | None = None,
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    **options: Any,
) -> tuple[optax.GradientTransformation, Schedule]:
    """An optimizer of optax at a scheduled learning rate.

    Args:
      name: the name in optax, such as 'adamw', 'lion', 'sgd' or 'contrib.muon'.
      learning_rate: the highest learning rate; see `learning_rate_schedule`.
      total_steps: the number of steps of the run.
      warmup: steps of linear warm-up.
      schedule: the kind of decay.
      final: the learning rate at the end as a share of the highest.
      decay_from: the reference step of the decay 'rsqrt'.
      clip: the global norm to which the gradient is clipped first; 0 does not clip.
      weight_decay: None keeps the default of the optimizer, here and below.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: the constant in the denominator.
      **options: other arguments of the optimizer, such as momentum=0.9 or nesterov=True.

    Returns:
      The optimizer, and its schedule: step -> learning rate.

    Raises:
      UserError: for an unknown name, or an argument that this optimizer does not take.
    """
    rate = learning_rate_schedule(
        learning_rate,
        total_steps=total_steps,
        warmup=warmup,
        schedule=schedule,
        final=final,
        decay_from=decay_from,
    )
    given = options | {"weight_decay": weight_decay, "b1": b1, "b2": b2, "eps": eps}
    make = _find(name)
    arguments = _accepted(
        name, make, {key: value for key, value in given.items() if value is not None}
    )
    if clip < 0:
        raise UserError(f"optimizer.clip={clip} must not be negative; 0 turns clipping off")
    tx = make(rate, **arguments)
    return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx, rate


def learning_rate_schedule(
    learning_rate: float,
    *,
    total_steps: int,
    warmup: int = 0,
    schedule: str = "constant",
    final: float = 0.0,
    decay_from: int | None = None,
) -> Schedule:
    """The function step -> learning_rate * min(1, (step + 1) / warmup) * decay.

    With u from 0 to 1 after the warm-up, the decay is

        constant: 1                              cosine: final + (1 - final) (1 + cos(pi u)) / 2
        linear:   1 - (1 - final) u              rsqrt:  max(1, step / decay_from)^-1/2

    (the last by Karras et al. 2024, EDM2).

    Args:
      learning_rate: the highest learning rate.
      total_steps: the number of steps of the run.
      warmup: steps of linear warm-up.
      schedule: the kind of decay.
      final: the learning rate at the end as a share of the highest.
      decay_from: the reference step of rsqrt; None is the end of the warm-up.

    Raises:
      UserError: for an unknown schedule, or a rate or warm-up out of range.
    """
    if schedule not in DECAYS:
        raise unknown("learning-rate schedule", schedule, DECAYS)
    if learning_rate <= 0 or warmup < 0:
        raise UserError(
            f"optimizer.learning_rate={learning_rate} must be positive and "
            f"optimizer.warmup={warmup} not negative"
        )
    reference = max(decay_from or warmup, 1)
    span = max(total_steps - warmup, 1)

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        u = jnp.clip((step - warmup) / span, 0.0, 1.0)
        decay = {
            "constant": lambda: jnp.ones_like(u),
            "linear": lambda: 1 - (1 - final) * u,
            "cosine": lambda: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * u)),
            "rsqrt": lambda: jnp.maximum(step / reference, 1.0) ** -0.5,
        }[schedule]()
        return arrays.once(learning_rate * jnp.minimum((step + 1) / max(warmup, 1), 1.0) * decay)

    return rate


def _optimizer_names() -> list[str]:
    """The optimizers of the installed optax that `make_optimizer` takes.

    Those of optax.contrib are not listed.
    """
    public = (name for name in dir(optax) if not name.startswith(("_", "scale_by_")))
    return sorted(
        name for name in public if _takes_a_rate(getattr(optax, name)) and name not in LEFT_OUT
    )


def _find(name: str) -> Callable:
    if name.startswith("contrib."):
        importlib.import_module("optax.contrib")  # optax itself does not load it
    try:
        found = attrgetter(name)(optax)
    except AttributeError:
        found = None
    if (
        found is None
        or name.rpartition(".")[2].startswith("_")
        or name in LEFT_OUT
        or not _takes_a_rate(found)
    ):
        raise unknown("optimizer", name, _optimizer_names())
    return found


@functools.cache
def _takes_a_rate(found) -> bool:
    if not isinstance(found, (FunctionType, functools.partial)):
        return False
    return next(iter(inspect.signature(found).parameters), None) == "learning_rate"


def _accepted(name: str, make: Callable, arguments: dict) -> dict:
    takes = [key for key in inspect.signature(make).parameters if key != "learning_rate"]
    for key, value in arguments.items():
        if key not in takes:
            raise UserError(
                f"optimizer.{key}={value}: {name} has no such argument (set it to None); it takes "
                f"{', '.join(takes)}"
            )
    return arguments
