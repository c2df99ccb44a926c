"""Metrics of tables: marginals, correlations and the classifier two-sample test."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import normalization
from diffusion_jax.data.any_shape import StoredArrays
from diffusion_jax.data.columns import CATEGORY, NUMBER, Column
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import choice, intervals, judge, marginals, two_sample

COLUMNS = (Column("n", NUMBER), Column("m", NUMBER), Column("c", CATEGORY, ("a", "b")))


def rows(seed, count, rho=0.0, share=0.5):
    """Two numbers with correlation rho, and a category of which `share` are 'a'."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, count))
    first = np.arange(count) < share * count
    cells = [x, rho * x + np.sqrt(1 - rho**2) * y, first, ~first]
    return np.stack(cells, 1)[rng.permutation(count)].astype(np.float32)


def split(values):
    known = normalization.measure([values], "standard", "float32", "")
    return StoredArrays(values, np.arange(len(values)), None, known._replace(columns=COLUMNS))


def test_distances_of_marginals_are_those_of_their_laws():
    """Uniform on [0, 1] and on [0, 2] differ by 1/2 at 1; shares of 0.5 and 0.8 by 0.3."""
    a, b = np.arange(1000) / 1000, np.arange(1000) / 500
    assert marginals.kolmogorov_smirnov(a, b) == pytest.approx(0.5, abs=1e-3)
    assert marginals.kolmogorov_smirnov(a, a[:500]) == pytest.approx(0.5, abs=1e-3)
    assert marginals.kolmogorov_smirnov(np.zeros(5), np.zeros(3)) == 0
    found = marginals.distances(rows(0, 1000), rows(1, 1000, share=0.8), COLUMNS)
    assert found["total_variation"] == pytest.approx(0.3, abs=1e-9) and found["ks"] < 0.06
    assert set(marginals.distances(rows(0, 9), rows(1, 9), COLUMNS[:2])) == {"ks"}


def test_the_correlation_distance_is_of_pairs_of_different_columns():
    """Of five pairs of channels one differs, by 0.8; the two channels of 'c' are no pair."""
    a, b = rows(0, 20000), rows(1, 20000, rho=0.8)
    assert marginals.correlation_distance(a, b, COLUMNS) == pytest.approx(0.8 / 5, abs=0.01)
    assert marginals.correlation_distance(a, a, COLUMNS) == 0
    flat = np.concatenate([np.ones_like(a[:, :1]), a[:, 1:]], 1)  # a constant has no correlation
    assert marginals.correlation_distance(flat, b, COLUMNS) == pytest.approx(0.8 / 5, abs=0.01)
    assert marginals.correlation_distance(a[:, :1], b[:, :1], COLUMNS[:1]) == 0


def test_a_classifier_tells_two_laws_apart_as_well_as_bayes_and_equal_ones_not():
    """N(0, 1) and N(2, 1): Phi(1) = 0.841. Equal means and variances, but another correlation."""
    a, b = rows(0, 120), rows(1, 120)
    moved = b + np.array([2, 0, 0, 0], np.float32)
    hits = two_sample.c2st(a, moved)
    assert hits.shape == (240,) and np.mean(hits) == pytest.approx(0.841, abs=0.05)
    assert np.mean(two_sample.c2st(a, b)) == pytest.approx(0.5, abs=0.1)
    assert np.mean(two_sample.c2st(a, rows(2, 120, rho=0.9))) > 0.6


def test_more_samples_than_rows_make_further_sets(monkeypatch):
    """Each is compared with all rows; the mean of the sets is that of their accuracies."""
    a, b = rows(0, 55), rows(1, 25)
    hits = two_sample.in_sets(a, b)
    assert hits.shape == (2, 25, 2)
    np.testing.assert_array_equal(hits[1].ravel(), two_sample.c2st(a[25:50], b))
    np.testing.assert_array_equal(two_sample.in_sets(b, a)[0].ravel(), two_sample.c2st(b, a[:25]))
    monkeypatch.setattr(two_sample, "SETS", 1)
    assert len(two_sample.in_sets(a, b)) == 1


@pytest.mark.parametrize("sets", [2, 16])
def test_the_interval_of_several_sets_is_that_of_the_rows_they_share(sets):
    """95 of 100 hold the truth; that of independent pairs is too narrow."""
    rng, held, narrow = np.random.default_rng(0), [], []
    for _ in range(400):
        shared = rng.beta(0.5, 0.5, 40)  # how often each row is recognized; the mean is 1/2
        chance = np.stack([np.full((sets, 40), 0.5), np.broadcast_to(shared, (sets, 40))], -1)
        hits = rng.uniform(size=chance.shape) < chance
        found, alone = intervals.of_sets(hits), intervals.fraction(hits.ravel())
        held.append(abs(found.value - 0.5) < found.interval)
        narrow.append(abs(alone.value - 0.5) < alone.interval)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03) and np.mean(narrow) < np.mean(held)
    one = intervals.of_sets(hits[:1])
    assert one[:2] == intervals.fraction(hits[:1].ravel())[:2]


def test_the_metrics_of_tables_are_their_own():
    """By default, each with an interval; no correlation is seen where there is one to see."""
    train, test = split(rows(0, 200, rho=0.9)), split(rows(1, 60, rho=0.9))
    chosen = choice.choose(train, None, held_out=test, count=60)
    assert chosen.metrics == choice.OF_TABLES[1:] and not chosen.notes[1:]
    judged = judge.against(train, None, metrics=chosen.metrics, held_out=test, count=60)
    real = judge.measured_on_real(train, test, judged)
    names = {"c2st", "ks", "total_variation", "correlation", "frechet", "nearest_ratio", "copies"}
    assert set(real) == names and all(score.interval is not None for score in real.values())
    found = judged(split(rows(2, 60)).rows(np.arange(60))["image"])
    assert found["c2st"] > real["c2st"].value and found["correlation"] > 0.1
    assert set(judge.against(train, None)(rows(2, 60))) == names - {
        "c2st",
        "nearest_ratio",
        "copies",
    }


def test_metrics_of_tables_are_refused_for_other_data():
    arrays = Arrays(rows(0, 40))
    with pytest.raises(UserError, match="marginals is left out: the data are no table"):
        choice.choose(arrays, None, metrics=["marginals"])
    found = choice.choose(arrays, None, metrics=["c2st"], held_out=Arrays(rows(1, 40)))
    assert found.metrics == ("c2st",)
    with pytest.raises(UserError, match="c2st is left out: it needs 20 held-out examples, .* 4"):
        choice.choose(arrays, None, metrics=["c2st"], held_out=Arrays(rows(1, 4)))
