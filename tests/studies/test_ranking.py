"""The verdict of a comparison, on results by hand: margins, ties, and what is noise."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.studies.samplers import ranking
from diffusion_jax.studies.samplers.cells import Comparison, Result


def result(name, nfe, score, squares=None, left_out=None, **row):
    row = {
        "sampler": name,
        "nfe": nfe,
        "evaluations": nfe,
        "sliced_wasserstein": score,
        "stochastic": squares is None,
    } | row
    if squares is not None:
        row["error"] = float(np.sqrt(np.mean(squares)))
    return Result(
        row, None, squares, {} if left_out is None else {"sliced_wasserstein": np.asarray(left_out)}
    )


def test_a_margin_is_paired_over_seeds_and_jackknifed_over_groups():
    a, b = (
        result("a", 5, 1.0, np.array([1.0, 2.0, 3.0]), [1.0, 1.1, 0.9, 1.0, 1.0]),
        result("b", 5, 1.5, np.array([1.5, 2.5, 3.8]), [1.5, 1.7, 1.3, 1.5, 1.5]),
    )
    worse, noise = ranking.margin(a, b, "error")
    assert worse == pytest.approx(0.6) and noise == pytest.approx(
        np.std([0.5, 0.5, 0.8], ddof=1) / np.sqrt(3)
    )
    worse, noise = ranking.margin(
        a, b, "sliced_wasserstein"
    )  # gaps .5 .6 .4 .5 .5: sum of squares about their mean 0.02
    assert worse == pytest.approx(0.5) and noise == pytest.approx(np.sqrt(4 / 5 * 0.02))


def test_the_sentences_name_the_best_the_margin_and_ties():
    even = np.full(4, 1e-4)
    results = [
        result("good", 5, 0.10, even, [0.1] * 5),
        result("near", 5, 0.11, 4 * even, [0.10, 0.12, 0.11, 0.13, 0.09]),
        result("bad", 5, 0.50, 100 * even, [0.5] * 5),
        result("only", 10, 0.1, even),
        result("free", None, 0.01, even / 4, evaluations=7.5),
    ]
    five, ten = ranking.sentences(Comparison(results, Result({"what": ""})))
    assert five == (
        "At 5 NFE, a tie within noise, best by sliced Wasserstein: good (0.1), near (0.11), then "
        "bad (0.5); nearest to the exact solution is good (0.01), then near (0.02), 2 times as far."
    )
    assert (
        "free (0.01)" in ten and "only (0.1)" in ten
    )  # an adaptive sampler counts where its evaluations fit
    perfect = Result(
        {"what": "", "sliced_wasserstein": 0.12},
        None,
        None,
        {"sliced_wasserstein": np.full(5, 0.12)},
    )
    five = ranking.sentences(Comparison(results[:3], perfect))[0]
    assert (
        "2 samplers cannot be distinguished from the exact solution by sliced Wasserstein (0.12): "
        "good (0.1), near (0.11)" in five
    )
    assert ranking.sentences(
        Comparison([Result({"sampler": "a", "nfe": 5})], Result({"what": ""}))
    ) == ["At 5 NFE, no sampler has a result."]


def test_what_scores_no_worse_than_real_data_has_no_order_but_noise():
    def sure(value):
        return [value] * 5

    results = [
        result("a", 5, 0.08, left_out=sure(0.08)),
        result("b", 5, 0.10, left_out=sure(0.10)),
        result("c", 5, 0.30, left_out=sure(0.30)),
    ]
    compared = Comparison(results, Result({"what": ""}), {"sliced_wasserstein": 0.12})
    _, tied, perfect, beyond = ranking.ranking(compared, 5, "sliced_wasserstein")
    assert (tied, perfect, beyond) == (2, False, 2)
    assert ranking.sentences(compared) == [
        "At 5 NFE, a tie, best by sliced Wasserstein: a (0.08), b (0.1); 2 of them score no worse "
        "than real data (0.12), so their order is noise, then c (0.3)."
    ]
    alone = ranking.sentences(compared._replace(results=results[1:]))
    assert alone == [
        "At 5 NFE, best by sliced Wasserstein is b (0.1), no worse than real data "
        "(0.12), which is noise, then c (0.3)."
    ]
    assert (
        "worse by 0.02"
        in ranking.sentences(compared._replace(truth_scores={"sliced_wasserstein": 0.01}))[0]
    )
    scored = [
        Result({"sampler": name, "nfe": 5, "accuracy": value})
        for name, value in (("a", 0.99), ("b", 0.98), ("c", 0.9))
    ]
    assert (
        ranking.ranking(Comparison(scored, Result({}), {"accuracy": 0.97}), 5, "accuracy").tied == 2
    )


def test_the_frechet_distance_of_inceptions_features_is_called_fid():
    found = [
        Result({"sampler": name, "nfe": 5, "frechet": value})
        for name, value in (("a", 0.9), ("b", 1.9))
    ]
    compared = Comparison(found, Result({"what": ""}), {}, "inception")
    assert ranking.sentences(compared) == [
        "At 5 NFE, best by FID (inception) is a (0.9), then b (1.9), worse by 1."
    ]
    (other,) = ranking.sentences(compared._replace(features="pixels"))
    assert "best by Fréchet distance of pixels is a" in other


def test_more_recognized_is_better():
    results = [
        Result({"sampler": name, "nfe": 5, "accuracy": value})
        for name, value in (("a", 0.8), ("b", 0.9))
    ]
    assert [
        r.row["sampler"]
        for r in ranking.ranking(Comparison(results, Result({})), 5, "accuracy").results
    ] == ["b", "a"]
