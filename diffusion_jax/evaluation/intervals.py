"""How far chance moves a score: 95 % intervals, and scores without groups of images.

A fraction of images has the interval of Wilson (1927). Every other score of a set has a jackknife
over GROUPS groups of its images: it is computed again without each group (Tukey 1958), and

    se^2 = (G - 1) / G  sum_g (s_g - mean(s))^2,    interval = s +- t_(G-1, 0.975) se

with the quantile of Student's t. Groups are runs of adjacent images, so that each of them has every
class in turn. Two sets of the same seeds have the same groups, and their difference is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

GROUPS = 5
# quantiles at 0.975, which are the standard errors in half a 95 % interval
NORMAL = 1.959963984540054  # of the normal law, where the error is known
STUDENT = 2.7764451051977987  # of Student's t with GROUPS - 1 degrees, where it is estimated


class Measured(NamedTuple):
    """A score of a set of images.

    Attributes:
      value: the score.
      interval: half the width of its 95 % interval; None where it is not known.
      left_out: (GROUPS,), the score without each group; () where it is not known.
    """

    value: float
    interval: float | None = None
    left_out: Sequence[float] | np.ndarray = ()


def groups(count: int) -> list[range]:
    """Divide the positions of images into GROUPS runs of adjacent ones.

    Args:
      count: number of images.

    Returns:
      The positions of each group; [] where a group would have fewer than two images.
    """
    if count < 2 * GROUPS:
        return []
    bounds = [count * group // GROUPS for group in range(GROUPS + 1)]
    return [range(first, end) for first, end in zip(bounds, bounds[1:])]


def without(count: int, group: range) -> np.ndarray:
    """Mark the images that stay when a group is left out.

    Args:
      count: number of images.
      group: the positions of the group, as `groups` returns them.

    Returns:
      (count,) of bool.
    """
    stays = np.ones(count, bool)
    stays[group.start : group.stop] = False
    return stays


def jackknife(value: float, left_out: Sequence[float] | np.ndarray) -> Measured:
    """A score with the interval that the scores without each group give.

    Args:
      value: the score of all images.
      left_out: (GROUPS,), the scores without each group; () where there are too few images.
    """
    if len(left_out) == 0:
        return Measured(float(value))
    return Measured(float(value), STUDENT * standard_error(left_out), np.asarray(left_out, float))


def standard_error(left_out: Sequence[float] | np.ndarray) -> float:
    """Estimate the standard error of a score from its values without each group.

    Args:
      left_out: (G,), the score without each of the G groups, in any order.
    """
    values = np.asarray(left_out, float)
    share = (len(values) - 1) / len(values)
    return float(np.sqrt(share * np.square(values - values.mean()).sum()))


def fraction(hits: np.ndarray) -> Measured:
    """The fraction of images that have a property, with half the width of Wilson's interval.

    Args:
      hits: (N,) of bool, N >= 1.
    """
    count, share = len(hits), float(np.mean(hits))
    ratio = NORMAL**2 / count
    half = NORMAL / (1 + ratio) * np.sqrt(share * (1 - share) / count + ratio / (4 * count))
    left_out = [np.mean(hits[without(count, group)]) for group in groups(count)]
    return Measured(share, float(half), np.asarray(left_out, float))


def of_sets(hits: np.ndarray) -> Measured:
    """The fraction of hits in several sets of pairs that share the second example of each pair.

    With the means h of the shared examples over the sets, and p of all others,

        se^2 = (var(h) / N + var(p) / (K N)) / 4

    One set has the interval of `fraction`.

    Args:
      hits: (K, N, 2) of bool.

    Returns:
      The fraction; groups that are left out are of pairs.
    """
    sets, count, _ = hits.shape
    if sets == 1:
        return fraction(hits.reshape(-1))
    by_pair = hits.mean((0, 2))
    shared, other = hits[..., 1].mean(0), hits[..., 0].astype(float)
    error = np.sqrt((np.var(shared) / count + np.var(other) / other.size) / 4)
    left_out = [np.mean(by_pair[without(count, group)]) for group in groups(count)]
    return Measured(float(hits.mean()), float(NORMAL * error), np.asarray(left_out, float))


def mean(values: np.ndarray) -> Measured:
    """The mean of a number of each image, with half the width of its normal interval.

    Args:
      values: (N,), of independent images; of one image there is no interval.
    """
    if len(values) < 2:
        return Measured(float(np.mean(values)))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return Measured(float(np.mean(values)), float(NORMAL * error))


def by_groups(
    score: Callable[[np.ndarray], Mapping[str, float]], count: int, *, grouped: bool = True
) -> dict[str, Measured]:
    """Jackknife scores that are computed from the images themselves.

    Args:
      score: which images stay, (count,) of bool -> {name: score}.
      count: the number of images.
      grouped: whether intervals are needed; without them a score costs one evaluation.
    """
    whole = score(np.ones(count, bool))
    parts = [score(without(count, group)) for group in groups(count)] if grouped else []
    return {name: jackknife(value, [part[name] for part in parts]) for name, value in whole.items()}


def mean_of_sets(sets: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """Average the scores of sets of disjoint seeds; their errors are independent.

    Args:
      sets: the scores of each set by name; all sets have the same scores.

    Returns:
      The means by name. The interval is known where it is known in every set.
    """
    found = {}
    for name in sets[0]:
        parts = [scores[name] for scores in sets]
        value, known = float(np.mean([part.value for part in parts])), None
        if all(part.interval is not None for part in parts):
            known = float(np.sqrt(np.sum(np.square([part.interval for part in parts]))) / len(sets))
        found[name] = Measured(value, known)
    return found


def values(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return scores without their intervals.

    Args:
      measured: scores with intervals, by name.
    """
    return {name: score.value for name, score in measured.items()}


def halves(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return half the width of every interval that is known, by name.

    Args:
      measured: scores with intervals, by name.
    """
    return {name: score.interval for name, score in measured.items() if score.interval is not None}


def record(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Return what a JSON file holds of scores.

    Args:
      measured: scores with intervals, by name.

    Returns:
      {name: score, ..., 'intervals': {name: half the width}}.
    """
    return values(measured) | {"intervals": halves(measured)}
