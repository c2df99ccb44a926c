"""What samplers are compared on, and how its samples are judged and shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from markupsafe import Markup

from diffusion_jax.core.types import Cond, Denoise, Key, Params, Process
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.estimators import Measurements, Scores
from diffusion_jax.evaluation.judge import Judge
from diffusion_jax.evaluation.samples import in_memory


class Judging(NamedTuple):
    """The judge and the figures of the samples of a subject.

    Attributes:
      judge: what scores them.
      labels: the labels of the samples, or None.
      truth: what as much real data scores, with intervals.
      real: samples of the truth.
      picture: samples -> one tile of a strip.
      shown: how many samples a tile needs, None for all.
      players: samples -> a player of each, of sounds.
    """

    judge: Judge
    labels: np.ndarray | None
    truth: Measurements
    real: np.ndarray
    picture: Callable[[np.ndarray], np.ndarray]
    shown: int | None = None
    players: Callable[[np.ndarray], list[Markup]] | None = None

    @property
    def truth_scores(self) -> Scores:
        """What as much real data scores."""
        return intervals.values(self.truth)

    @property
    def features(self) -> str:
        """The features that plain scores depend on; '' for points."""
        return self.judge.plain


class Subject(NamedTuple):
    """A trained model or an analytic target, and how its samples are judged.

    Attributes:
      name: its name in titles.
      identity: everything that its numbers depend on besides sampler, grid and budget; 'seeds' is
        one of the keys.
      process: the diffusion process.
      shape: the shape of one example.
      dtype: the precision of the samplers.
      denoise: params -> Denoise.
      params: the parameters.
      cond: the conditions of the samples, or None.
      keys: (N,), one for each sample and the same for every sampler.
      batch_size: samples that are drawn at once.
      finish: x0 (N, ...) -> samples as they are judged and kept.
      judging: how the samples are scored and shown.
      exact: () -> (exact solutions x0 from the first seeds or from all of them, how they were
        found). It raises UserError where there is no path to solve for.
      mesh: the devices that draw; None for one device.
    """

    name: str
    identity: dict[str, Any]
    process: Process
    shape: tuple[int, ...]
    dtype: str
    denoise: Callable[[Params], Denoise]
    params: Params
    cond: Cond
    keys: Key
    batch_size: int
    finish: Callable[[np.ndarray], np.ndarray]
    judging: Judging
    exact: Callable[[], tuple[np.ndarray, str]]
    mesh: jax.sharding.Mesh | None = None

    def measured(self, samples: np.ndarray, *, grouped: bool = True) -> Measurements:
        """Score all samples of the subject, as `finish` returns them.

        Args:
          samples: (N, ...), one for each seed.
          grouped: whether the scores need intervals.
        """
        rows = in_memory(self.judging.judge.extract(samples, self.judging.labels))
        return self.judging.judge.measure(rows, grouped=grouped)
