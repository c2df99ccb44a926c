"""Which sampler of a comparison is best at a budget, by how much, and whether that exceeds noise.

ranking(compared, 10, "frechet")     the samplers in order, and how many of them are tied
sentences(compared)                  the verdict in words, a sentence for each budget
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.metrics import Metric, find
from diffusion_jax.studies.samplers.cells import Comparison, Result

SCORES = (  # the scores that a cell can have, in the order of columns
    "accuracy",
    "frechet",
    "sliced_wasserstein",
    "mmd",
    "mode_weights",
    "error",
    "order",
)
QUALITY = ("frechet", "sliced_wasserstein")  # the score of the distribution, whichever there is


def interval(row: Mapping[str, Any], metric: str) -> float | None:
    """Half the width of the 95 % interval of a score in a row; None where it is not known.

    Args:
      row: a row of results.
      metric: the name of the score.
    """
    return row.get("intervals", {}).get(metric)


def margin(best: Result, other: Result, metric: str) -> tuple[float, float]:
    """The difference between another result and the best, and its standard error.

    The difference is paired, because all cells share their seeds. For 'error' it is the mean
    difference of the squared errors; the standard error of another score is a jackknife over groups
    of samples.

    Args:
      best: the result that is the best by this metric.
      other: a result of the same seeds.
      metric: 'error', or a score that both rows have.

    Returns:
      (difference, standard error): the difference is positive where `other` is worse, and the error
      is 0 where it is not known.
    """
    if metric == "error":
        gap = other.squares - best.squares
        noise = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else 0.0
        return float(gap.mean()), float(noise)
    score = find(metric)
    worse = score.loss(other.row[metric]) - score.loss(best.row[metric])
    if metric not in best.left_out or metric not in other.left_out:
        return worse, 0.0
    gaps = other.left_out[metric] - best.left_out[metric]
    return worse, intervals.standard_error(gaps)


class Ranking(NamedTuple):
    """The results that kept to a budget, the best first.

    Attributes:
      results: the results in order.
      tied: how many of them, from the first, differ by no more than noise.
      perfect: whether the tied ones cannot be distinguished from the exact solution either.
      beyond: how many score no worse than real data.
    """

    results: list[Result]
    tied: int
    perfect: bool
    beyond: int = 0


def ranking(compared: Comparison, nfe: int, metric: str) -> Ranking:
    """Rank the results of a budget by a metric.

    A difference of two standard errors or less counts as noise, and so does being better than the
    exact solution or than real data. An adaptive sampler takes part where its evaluations
    fit the budget.

    Args:
      compared: the results, and those of the exact solutions and of real data.
      nfe: the budget, in network evaluations per sample.
      metric: 'error' or a score; results without it do not take part.
    """
    loss = find(metric).loss

    def within(row: dict[str, Any]) -> bool:
        fits = row["nfe"] == nfe or (row["nfe"] is None and row["evaluations"] <= nfe)
        return metric in row and fits

    results = [result for result in compared.results if within(result.row)]
    results.sort(key=lambda result: loss(result.row[metric]))

    def worse_than(best: Result, other: Result) -> bool:
        worse, noise = margin(best, other, metric)
        return worse > 2 * noise

    exact = compared.exact
    perfect = results != [] and metric in exact.row and not worse_than(exact, results[0])
    best = exact if perfect else next(iter(results), None)
    worse = (i for i, other in enumerate(results) if i and worse_than(best, other))
    tied = next(worse, len(results))
    truth, beyond = compared.truth_scores.get(metric), 0
    if truth is not None:
        beyond = sum(loss(result.row[metric]) <= loss(truth) for result in results)
    return Ranking(results, max(tied, beyond), perfect and beyond <= tied, beyond)


# ---- failures
def failures(compared: Comparison) -> list[str]:
    """Write a sentence with the reason for every cell that has no result.

    Args:
      compared: the results, of which a failed one has a 'note' in its row.
    """

    def at(row: dict[str, Any]) -> str:
        return "" if row["nfe"] is None else f" at {row['nfe']} NFE"

    rows = [result.row for result in compared.results if _failed(result.row)]
    return [
        f"{row['sampler']}{at(row)} has no result: {row.get('note', 'no score')}" for row in rows
    ]


def need_results(rows: Sequence[dict[str, Any]]) -> None:
    """Check that a table has at least one result.

    Args:
      rows: all rows of the table; an empty table passes.

    Raises:
      UserError: if every cell has failed; it states the first reason.
    """
    if rows and all(map(_failed, rows)):
        reason = rows[0].get("note", "no score")
        raise UserError(f"no cell has a result; the first failed because: {reason}")


def _failed(row: dict[str, Any]) -> bool:
    """Whether a row has no score, unless its samples were drawn and there is nothing to measure."""
    drawn = "evaluations" in row and "note" not in row
    return not drawn and not any(key in row for key in SCORES)


# ---- the verdict in words
def sentences(compared: Comparison) -> list[str]:
    """Write a sentence for each budget: the best samplers, and by how much they are best.

    Samplers are compared by the distribution of their samples (QUALITY), and by the distance to the
    exact solution.

    Args:
      compared: the results of all samplers at all budgets.

    Returns:
      The sentences in the order of the budgets.
    """
    rows = [result.row for result in compared.results]
    quality = [metric for metric in QUALITY if any(metric in row for row in rows)][:1]
    lines = []
    for nfe in sorted({row["nfe"] for row in rows if row["nfe"] is not None}):
        parts = [_sentence(compared, nfe, metric) for metric in (*quality, "error")]
        said = "; ".join(filter(None, parts)) or "no sampler has a result"
        lines.append(f"At {nfe} NFE, {said}.")
    return lines


def _sentence(compared: Comparison, nfe: int, metric: str) -> str:
    results, tied, perfect, beyond = ranking(compared, nfe, metric)
    if not results:
        return ""
    score = find(metric, compared.features)
    written = [
        f"{r.row['sampler']} ({score.text(r.row[metric], interval(r.row, metric))})"
        for r in results
    ]
    by = "nearest to the exact solution" if metric == "error" else f"best by {score.title}"
    who = ", ".join(written[: min(tied, 3)]) + (f" and {tied - 3} more" if tied > 3 else "")
    after = f", then {written[tied]}" if tied < len(results) else ""
    if perfect and tied > 1:
        exact = score.text(compared.exact.row[metric], interval(compared.exact.row, metric))
        return (
            f"{tied} samplers cannot be distinguished from the exact solution by {score.title} "
            f"({exact}): {who}{after}"
        )
    if beyond:
        noise = compared.truth_intervals.get(metric)
        truth = f"real data ({score.text(compared.truth_scores[metric], noise)})"
        if tied == 1:
            return f"{by} is {who}, no worse than {truth}, which is noise{after}"
        return (
            f"a tie, {by}: {who}; {beyond} of them score no worse than {truth}, so their order is "
            f"noise{after}"
        )
    if tied > 1:
        return f"a tie within noise, {by}: {who}{after}"
    if len(results) == 1:
        return f"{by} is {written[0]}, the only one"
    return f"{by} is {written[0]}, then {written[1]}, {_difference(*results[:2], score)}"


def _difference(best: Result, other: Result, score: Metric) -> str:
    """Describe the difference between another result and the best."""
    if score.name == "error":
        ratio = other.row["error"] / max(best.row["error"], 1e-300)
        return f"{ratio:.3g} times as far"
    return f"worse by {score.text(*margin(best, other, score.name))}"
