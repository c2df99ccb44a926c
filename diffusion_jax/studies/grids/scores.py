"""How the samples on a grid of times are scored: by the exact solutions, and by their quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.evaluation import features, frechet, intervals, points
from diffusion_jax.evaluation.estimators import Scores
from diffusion_jax.studies import drawing
from diffusion_jax.studies.grids.report import SHIFT
from diffusion_jax.studies.samplers.ranking import QUALITY
from diffusion_jax.studies.subject import Subject
from diffusion_jax.training import distributed

MARGIN = 0.02  # of the logarithm of each score, which polishing tries to gain on hand-made grids


class Solved(NamedTuple):
    """A subject with the exact x0 (M, ...) of its first M seeds."""

    subject: Subject
    truth: np.ndarray


def measure(
    solved: Solved,
    run: drawing.Runner,
    ts: np.ndarray,
    *,
    quality: bool,
    shift: bool = False,
    grouped: bool = False,
) -> dict[str, Any]:
    """Measure the error of a grid's samples to the exact solutions, and optionally their quality.

    Args:
      solved: the subject, and the exact solutions of its first M seeds.
      run: draws the samples of the subject.
      ts: the times of the grid.
      quality: whether the samples are also judged by the subject's metrics.
      shift: whether the distance between the two distributions is measured as well; it needs
        `quality`.
      grouped: whether the scores have intervals, under the key 'intervals'.

    Returns:
      {'error': root mean square over the first M seeds, and the other scores by their names}, the
      same on every process.
    """
    subject, truth = solved
    if not quality:
        x, *_ = run(ts, np.arange(len(truth)))
        return {"error": _rms(x, truth)}
    kwargs = {"exact": truth, "grouped": grouped, "with_x0": shift}
    outcome = drawing.judged(subject, run, ts, **kwargs)
    return distributed.from_first(outcome and _scores(subject, truth, outcome, shift, grouped))


def _scores(
    subject: Subject, truth: np.ndarray, outcome: drawing.Outcome, shift: bool, grouped: bool
) -> dict[str, Any]:
    if outcome.bad:
        return dict.fromkeys(("error", SHIFT, *QUALITY), math.inf)
    scores: dict[str, Any] = {"error": float(np.sqrt(outcome.squares.mean()))}
    if shift:
        scores[SHIFT] = _shift(subject.finish(outcome.x0), subject.finish(truth))
    scores |= intervals.values(outcome.measured)
    return scores | ({"intervals": intervals.halves(outcome.measured)} if grouped else {})


def combined(hand: Sequence[Scores]) -> Callable[[Scores], float]:
    """Make a function of scores that is to be minimized: the gains over hand-made grids, in sum.

    It is the sum of log(score / the best hand-made score) over error and quality; a score that
    gains less than MARGIN costs sixfold.

    Args:
      hand: the scores of all hand-made grids at one budget, where lower is better.

    Returns:
      The function; it returns 1000 where a score is not finite.
    """
    parts = ["error", *(metric for metric in QUALITY if metric in hand[0])]
    best = {part: min(scores[part] for scores in hand) for part in parts}

    def score(scores: Scores) -> float:
        gains = [math.log(max(scores[part], 1e-12) / best[part]) for part in parts]
        if not all(map(math.isfinite, gains)):
            return 1e3
        return sum(gain + 5 * max(gain + MARGIN, 0.0) for gain in gains)

    return score


def _shift(x: np.ndarray, exact: np.ndarray) -> float:
    """The distance between a solver's samples and the exact solutions of the same seeds.

    It is the Fréchet distance of the pixels of images (uint8), or the sliced Wasserstein distance
    of points. Unlike a distance to data it has no sampling noise.
    """
    if x.dtype != np.uint8:
        return points.sliced_wasserstein(x, exact)
    return frechet.distance(*(frechet.root_of(features.pixels(images)) for images in (x, exact)))


def _rms(x: np.ndarray, truth: np.ndarray) -> float:
    if not np.isfinite(x).all():
        return float("inf")
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64) - truth))))
