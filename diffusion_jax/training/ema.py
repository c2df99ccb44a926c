"""Moving averages of the parameters, with half-lives in images or as long as a share of the run.

    ema <- beta ema + (1 - beta) params

Half-lives (Karras et al. 2022, EDM, appendix F.2): beta = 0.5^(batch / h) with
h = min(half-life, ramp * images seen). Counted in images they do not change with the batch size;
the ramp keeps a young average from remembering the initialization.

Powers (Karras et al. 2024, EDM2, section 3.1): after n steps the parameters of step k have a weight
proportional to k^gamma, which beta = (1 - 1/n)^(gamma + 1) gives. The length of such an average is
a fixed share sigma_rel of all steps so far, and an average of any length can be computed afterwards
from snapshots of two (post_hoc.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.arrays import tree_lerp
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Params

LONGEST = 0.28  # the plain mean of all parameters, gamma = 0, has 1 / sqrt(12) = 0.289


class Ema(NamedTuple):
    """Averages of the parameters, as two pure functions.

    Attributes:
      init: params -> {name: params}.
      update: (ema, params, images seen before this batch, images in this batch) -> ema.
    """

    init: Callable[[Params], dict[str, Params]]
    update: Callable[[dict[str, Params], Params, Array, int], dict[str, Params]]


def name(halflife: float) -> str:
    """Name a half-life in images: 500 -> '500', 50_000 -> '50k', 1_500_000 -> '1.5M'.

    Args:
      halflife: number of images after which the weight of a parameter in the average is halved.
    """
    for unit, suffix in ((1_000_000, "M"), (1_000, "k")):
        if halflife >= unit:
            return f"{halflife / unit:.6g}{suffix}"
    return f"{halflife:.6g}"


def halflives(images: Sequence[float] = (50_000,), *, ramp: float | None = 0.05) -> Ema:
    """EMAs with given half-lives.

    Args:
      images: the half-lives in images.
      ramp: a half-life is at most this share of the images seen; None or 0 does not limit it.

    Raises:
      UserError: if a half-life is not positive, or two have the same name.
    """
    spans = {name(h): float(h) for h in images}
    if len(spans) != len(images) or any(h <= 0 for h in spans.values()):
        raise UserError(
            f"ema half-lives {tuple(images)} must be positive and differ from one another"
        )

    def init(params):
        return {key: params for key in spans}

    def update(ema, params, images_seen, batch):
        return {
            key: tree_lerp(ema[key], params, weight(h, images_seen, batch))
            for key, h in spans.items()
        }

    def weight(halflife, images_seen, batch):  # 1 - beta, without the cancellation of beta near 1
        young = ramp * jnp.asarray(images_seen, jnp.float32) if ramp else jnp.inf
        return -jnp.expm1(-np.log(2) * batch / jnp.clip(young, 1e-8, halflife))

    return Ema(init, update)


def power_name(sigma_rel: float) -> str:
    """Name the power average of a relative length: 0.05 -> 'power_0.05'.

    Args:
      sigma_rel: the length as a share of the run, see `gamma`.
    """
    return f"power_{sigma_rel:g}"


def powers(lengths: Sequence[float]) -> Ema:
    """Power averages of given relative lengths.

    Args:
      lengths: the lengths sigma_rel, in (0, 0.28].

    Raises:
      UserError: for a length outside this range, or if two are the same.
    """
    gammas = {power_name(length): gamma(length) for length in lengths}
    if len(gammas) != len(lengths):
        raise UserError(f"ema.powers={tuple(lengths)} must differ from one another")

    def init(params):
        return {key: params for key in gammas}

    def update(ema, params, images_seen, batch):
        shrink = jnp.log1p(
            -batch / (jnp.asarray(images_seen, jnp.float32) + batch)
        )  # log(1 - 1/n); -inf at the first step
        return {
            key: tree_lerp(ema[key], params, -jnp.expm1((g + 1) * shrink))
            for key, g in gammas.items()
        }

    return Ema(init, update)


def gamma(sigma_rel: float) -> float:
    """Return the exponent gamma of a power average of a given relative length.

    The length is the standard deviation of the weights in units of the length of the run,
    sigma_rel^2 = (gamma + 1) (gamma + 2)^-2 (gamma + 3)^-1, solved here for gamma >= 0 (Karras et
    al. 2024, EDM2, appendix C.1).

    Args:
      sigma_rel: the relative length, in (0, 0.28].

    Raises:
      UserError: for a length outside (0, 0.28].
    """
    if not 0 < sigma_rel <= LONGEST:
        raise UserError(
            f"the relative length {sigma_rel:g} of a power EMA must be above 0 and at most "
            f"{LONGEST}, such as 0.05"
        )
    inverse = sigma_rel**-2.0
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def together(*parts: Ema) -> Ema:
    """Combine several Emas into one.

    Args:
      *parts: the Emas; no two of them may have an average of the same name.
    """

    def init(params):
        return {key: tree for part in parts for key, tree in part.init(params).items()}

    def update(ema, params, images_seen, batch):
        return {
            key: tree
            for part in parts
            for key, tree in part.update(ema, params, images_seen, batch).items()
        }

    return Ema(init, update)


def target(rate: float | Callable[[Array], Array], name: str = "target") -> Ema:
    """The slow copy at which a loss aims: ema <- rate ema + (1 - rate) params.

    Args:
      rate: a number, or a function of the step.
      name: the name of the average.
    """

    def update(ema, params, images_seen, batch):
        now = rate(images_seen / batch) if callable(rate) else rate
        return {name: tree_lerp(ema[name], params, 1 - now)}

    return Ema(lambda params: {name: params}, update)


def frozen(name: str, given: Params) -> Ema:
    """Make an average that never changes, such as a teacher.

    In the state it is checkpointed, sharded and donated like the rest.

    Args:
      name: its name in TrainState.ema.
      given: its parameters, which need not be those of the trained network.
    """
    return Ema(
        lambda params: {name: given}, lambda ema, params, images_seen, batch: {name: ema[name]}
    )
