"""The types of objectives: draw random numbers, then score denoisers.

All randomness is in `draw`; `loss` is deterministic. `Objective` is for diffusion models: one
denoiser and one time. `FewStep` is for few-step models (consistency.py, meanflow.py): two times,
and further networks to learn from. Every `draw` is decorated with `per_example`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.core import arrays
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Noised
from diffusion_jax.objectives.resampling import Resampling
from diffusion_jax.processes.learned import Schedule


def per_example(draw: Callable) -> Callable:
    """Lets a `draw` that is written for one key per example also take one key for the batch.

    The key of example i is the single key folded with i (arrays.example_keys), so it does not
    depend on the batch size.

    Args:
      draw: a function (keys (B,), x (B, ...), ...).

    Returns:
      The same function, which also accepts a single key.
    """

    @functools.wraps(draw)
    def with_keys(keys: Key, x: Array, *rest):
        return draw(arrays.example_keys(keys, len(x)), x, *rest)

    return with_keys


class Learned(NamedTuple):
    """A noise schedule that an objective learns with the network, and the loss that trains both.

    Attributes:
      schedule: what of it is learned, with its parameters before training.
      loss: a function (predict, params, own, keys, x0 (B, ...), context) -> (losses (B,), times
        (B,), metrics {name: (B,)}). predict(params, context, x_t, t) is the prediction of the
        network, own are the parameters of the schedule, and context is what else predict uses: its
        condition and its random keys.
    """

    schedule: Schedule
    loss: Callable[..., tuple[Array, Array, dict[str, Array]]]


class Objective(NamedTuple):
    """An objective of diffusion models.

    Attributes:
      draw: a function (keys, x0 (B, ...)) -> Noised. keys: one for each example, (B,), or one for
        the batch.
      loss: a function (denoise, noised, cond) -> (B,), the loss of each example.
      resampling: draws the times of training by their losses, where the objective is trained so;
        `at` is then used instead of `draw`.
      at: a function (keys, x0, t (B,)) -> Noised, for given times; None without resampling.
      learned: the noise schedule that is learned, whose loss is then used instead of `draw` and
        `loss`; these are of the whole process.
      gray_levels: whether the loss has a term p(x0 | x_t) of the gray levels of images.
    """

    draw: Callable[[Key, Array], Noised]
    loss: Callable[[Denoise, Noised, Cond], Array]
    resampling: Resampling | None = None
    at: Callable[[Key, Array, Array], Noised] | None = None
    learned: Learned | None = None
    gray_levels: bool = False


class FewStepExample(NamedTuple):
    """A training example with two times, s <= t.

    Attributes:
      x_t: noised data at time t, (B, ...).
      t: the later time, (B,).
      x0: data, (B, ...).
      eps: unit noise, (B, ...).
      s: the earlier time, (B,).
    """

    x_t: Array
    t: Array
    x0: Array
    eps: Array
    s: Array


class FewStepNetworks(NamedTuple):
    """The networks that take part in the loss of a few-step model, as denoisers of one process.

    Attributes:
      student: the network that is trained; the gradient passes through it alone.
      frozen: the same weights without a gradient.
      ema_network: the slow average of the student, for objectives that have one, else `frozen`. It
        has no gradient either.
      teacher: a diffusion model with its guidance, or None.
      null: maps a condition to the null condition.
    """

    student: Denoise
    frozen: Denoise
    ema_network: Denoise
    teacher: Denoise | None = None
    null: Callable[[Cond], Cond] = lambda cond: cond


class FewStep(NamedTuple):
    """An objective of few-step models.

    Curricula are functions of `progress`, the share of the run that is done, from 0 to 1, so that
    they stretch with the length of the run.

    Attributes:
      draw: a function (keys, x0 (B, ...), progress) -> FewStepExample. keys: one for each example,
        (B,), or one for the batch.
      loss: a function (networks, drawn, cond, progress) -> (B,), the loss of each example.
      ema_rate: the rate of the slow average as a function of progress, with the update
        ema_network <- rate ema_network + (1 - rate) student; None: there is no such average.
      needs_teacher: whether `loss` uses the teacher.
      guided: whether `loss` itself applies classifier-free guidance, and so needs a condition.
      two_times: whether the network receives s as well.
      bounded: whether the loss fixes differences of f along a trajectory alone, so that f at t_min,
        x_t / alpha, must come from the parameterization.
    """

    draw: Callable[[Key, Array, Array], FewStepExample]
    loss: Callable[[FewStepNetworks, FewStepExample, Cond, Array], Array]
    ema_rate: Callable[[Array], Array] | None = None
    needs_teacher: bool = False
    guided: bool = False
    two_times: bool = False
    bounded: bool = False
