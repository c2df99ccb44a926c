"""Loss-aware times: levels whose losses are large are drawn more often (Nichol & Dhariwal 2021).

    p_i = (1 - u) m_i / sum_j m_j + u / T,    m_i^2 = mean of L_i^2 over the last losses of level i
    E_p [ L_i / (T p_i) ] = mean_i L_i

(eq. 18), so that the weighted loss is an unbiased estimate of the one with uniform times, of less
variance. Until every level has been drawn often enough, all are equally likely.

The last losses are arrays in the training state, so that a run that is resumed draws the same
times. Probabilities are whole numbers divided by their sum, so that those which are drawn and those
which the weights are made of are the same in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Array, Key

NAME = "loss_history"  # of the history in the averages of a training state
WHOLE = 2.0**30  # what the whole numbers of all levels sum to, nearly
UNIFORM = 1e-3  # u, the share of uniform draws
LENGTH = 10  # losses of a level that are kept


class LossHistory(NamedTuple):
    """The last losses of each level.

    Attributes:
      losses: (T, LENGTH) float32, the places of a level being filled in turn.
      counts: (T,) int32, how many losses of each level there have been.
    """

    losses: Array
    counts: Array


class Resampling(NamedTuple):
    """The levels of an objective whose times are drawn by their losses.

    Attributes:
      steps: T, the number of levels, which are equally spaced times.
      first: the time of the first level.
      last: the time of the last one.
    """

    steps: int
    first: float
    last: float

    def fresh(self) -> LossHistory:
        """The history before the first step."""
        losses = jnp.zeros((self.steps, LENGTH), jnp.float32)
        return LossHistory(losses, jnp.zeros(self.steps, jnp.int32))

    def draw(self, keys: Key, history: LossHistory) -> tuple[Array, Array]:
        """Draws the times of training examples.

        Args:
          keys: one key per example, (B,).
          history: the losses so far.

        Returns:
          (times (B,), the weights 1 / (T p_i) of their losses (B,)).
        """
        chances = _chances(history)
        ends = jnp.cumsum(chances)
        place = jax.vmap(lambda key: jax.random.randint(key, (), 0, ends[-1]))(keys)
        index = jnp.searchsorted(ends, place, side="right")
        weights = ends[-1] / self.steps / chances[index].astype(jnp.float32)
        times = self.first + index / (self.steps - 1) * (self.last - self.first)
        return times.astype(jnp.float32), weights

    def update(self, history: LossHistory, t: Array, losses: Array) -> LossHistory:
        """Adds the losses of a batch, in its order.

        Args:
          history: the losses so far.
          t: times of the examples, (B,).
          losses: their losses without weights, (B,).
        """
        spacing = (self.last - self.first) / (self.steps - 1)
        index = jnp.int32(jnp.clip(jnp.round((t - self.first) / spacing), 0, self.steps - 1))
        same = index[:, None] == index
        earlier = jnp.sum(jnp.tril(same, -1), axis=1)
        later = jnp.sum(jnp.triu(same, 1), axis=1)
        place = (history.counts[index] + earlier) % LENGTH
        # of more losses than there are places the last ones stay
        row = jnp.where(later < LENGTH, index, self.steps)
        table = history.losses.at[row, place].set(losses.astype(jnp.float32), mode="drop")
        return LossHistory(table, history.counts.at[index].add(1))


def _chances(history: LossHistory) -> Array:
    """Whole numbers in proportion to the probabilities of the levels, (T,) int32."""
    steps = len(history.counts)
    moments = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
    shares = (1 - UNIFORM) * moments / jnp.maximum(jnp.sum(moments), 1e-30) + UNIFORM / steps
    known = jnp.all(history.counts >= LENGTH)
    shares = jnp.where(known, shares, 1 / steps)
    return jnp.maximum(jnp.int32(shares * WHOLE), 1)
