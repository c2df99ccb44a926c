"""What an objective is: draw noise, then score denoisers. All randomness is in `draw`; `loss` is
deterministic.

`Objective` is for diffusion: one denoiser, one time. `FewStep` is for networks that jump
(consistency.py, meanflow.py): two times, and besides the student other networks to learn from.
Every draw is decorated with `per_example`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax import arrays
from diffusion_jax.types import Array, Cond, Denoise, Key, Noised


def per_example(draw: Callable) -> Callable:
    """draw(keys, x (B, ...), ...), written for keys (B,), which then also takes one key for the
    batch, as samplers do.

    The key of example i is the single key folded with i (arrays.example_keys): it does not depend
    on the batch.
    """

    @functools.wraps(draw)
    def drawn(keys: Key, x: Array, *rest):
        return draw(arrays.example_keys(keys, len(x)), x, *rest)

    return drawn


class Objective(NamedTuple):
    """draw(keys, x0 (B, ...)) -> Noised;  loss(denoise, noised, cond) -> (B,), one number per example.

    keys: one for each example, (B,), or one for the batch.
    """

    draw: Callable[[Key, Array], Noised]
    loss: Callable[[Denoise, Noised, Cond], Array]


class FewStepExample(NamedTuple):
    """A training example with two times, s <= t. x_t, x0, eps: (B, ...); t, s: (B,)."""

    x_t: Array
    t: Array
    x0: Array
    eps: Array
    s: Array


class FewStepNetworks(NamedTuple):
    """Who takes part in a few-step loss: denoisers of one process.

    student: the network; the gradient goes through it alone. frozen: the same weights, constant.
    target: constant too, the slow copy of an objective that has one, else frozen. teacher: a
    diffusion model, with its guidance, or None. null(cond): the condition that says nothing.
    """

    student: Denoise
    frozen: Denoise
    ema_network: Denoise
    teacher: Denoise | None = None
    null: Callable[[Cond], Cond] = lambda cond: cond


class FewStep(NamedTuple):
    """draw(keys, x0 (B, ...), progress) -> FewStepExample;  loss(networks, drawn, cond, progress) -> (B,), one number per example.

    keys: one for each example, (B,), or one for the batch.
    progress: how much of the run is done, from 0 to 1, which curricula are functions of, so that
      they stretch with it.
    rate: of the slow copy, target <- rate target + (1 - rate) student, a function of progress;
      None: there is none.
    taught: whether there must be a teacher. guided: whether the loss itself guides, by the
      condition.
    """

    draw: Callable[[Key, Array, Array], FewStepExample]
    loss: Callable[[FewStepNetworks, FewStepExample, Cond, Array], Array]
    ema_rate: Callable[[Array], Array] | None = None
    needs_teacher: bool = False
    guided: bool = False
