"""The comparison of samplers: on an exact law and a tiny model, resumed, with one that fails; the
verdict by hand; the page.

And experiments.optimize_grid, which judges the same way and whose grids the comparison takes.
"""

from __future__ import annotations

import functools
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits, toy
from diffusion_jax import data
from diffusion_jax.assembly import components, experiment, sampling, train, workdir
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.report import html
from diffusion_jax.samplers import ancestral, base, grids, multistep, ode
from diffusion_jax.studies import comparison, grid_search, sampler_comparison
from diffusion_jax.studies.comparison import Comparison, Result
from diffusion_jax.targets import reference
from tests import commands

ENTRIES = ["ancestral.ddim@uniform_logsnr", "ode.edm_heun@uniform_logsnr", "ancestral.ddpm"]


def command(*args, expect=0, main="compare_samplers"):
    done = commands.run(main, *args)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three samplers on eight Gaussians at two budgets, by the functions behind the command."""
    root = tmp_path_factory.mktemp("gmm8")
    with jax.enable_x64(True):
        subject = comparison.of_target("gmm8", "schedules.VP()", list(range(40)))
        chosen = comparison.cells(ENTRIES, [9, 33], subject.process, "uniform")
        return subject, chosen, comparison.compare(subject, chosen, root), root


def test_trajectory_errors_on_a_target_are_those_of_float64_and_fall_at_the_solvers_order(compared):
    """Against 33 evaluations of the same solver by hand; Heun's 4 to 16 steps gain about 4^2,
    DDIM's 8 to 32 about 4.
    """
    subject, _, found, _ = compared
    error = {(r.row["sampler"], r.row["nfe"]): r.row.get("error") for r in found.results}
    ddim, heun = ([error[entry, nfe] for nfe in (9, 33)] for entry in ENTRIES[:2])
    assert 2.5 < ddim[0] / ddim[1] < 7 and 8 < heun[0] / heun[1] < 80
    assert (
        error["ancestral.ddpm", 9] is None
    )  # a stochastic sampler has no trajectory to be near to
    with jax.enable_x64(True):
        denoise, ts = subject.denoise(()), build_grid(subject.process, 33)
        x = base.start(subject.process, subject.keys, (40, 2), "float64")
        x0 = base.sample(ancestral.ddim(), denoise, subject.process, subject.keys, x, ts).x0
        end = reference.reference(denoise, subject.process, x, 1.0, subject.process.t_min)
        off = np.asarray(x0 - denoise(jnp.asarray(end), subject.process.t_min).x0)
    np.testing.assert_allclose(ddim[1], np.sqrt(np.mean(off**2)), rtol=1e-8)
    assert {"commit", "config_hash", "date"} <= found.results[0].row.keys() and found.results[
        0
    ].row["seeds"] == "0-39"


def build_grid(process, n):
    return comparison.build(components.GRIDS, "uniform_logsnr", process, n)


def test_finished_cells_are_taken_again_and_others_are_not(compared, monkeypatch):
    subject, chosen, found, root = compared
    made = []
    monkeypatch.setattr(
        comparison,
        "_judged",
        lambda subject, cell, about, *rest: made.append(cell.nfe) or Result(about),
    )
    with jax.enable_x64(True):
        again = comparison.compare(subject, chosen, root)
        assert made == [] and [r.row for r in again.results] == [r.row for r in found.results]
        for a, b in zip(again.results, found.results):
            np.testing.assert_array_equal(a.samples, b.samples)
        next(iter(root.glob("*.npz"))).write_bytes(b"cut short")
        more = comparison.cells(ENTRIES[:1], [9, 12, 33], subject.process, "uniform")
        comparison.compare(subject, more, root)
        assert 12 in made and len(made) <= 2  # the new budget, and perhaps the damaged file
        made.clear()
        other = subject._replace(
            identity=subject.identity | {"process": "schedules.VP(beta_max=10.0)"}
        )
        comparison.compare(other, chosen[:1], root)
        assert made == [9]


def test_a_sampler_that_fails_has_a_row_that_says_so(compared, tmp_path):
    subject, chosen, _, _ = compared

    def broken(noise, x, t, s, denoise, process):
        raise RuntimeError("this solver is broken")

    infinite = base.memoryless(lambda noise, x, t, s, denoise, process: x / 0.0)
    cells = [
        chosen[0]._replace(entry="mine.broken", sampler=base.memoryless(broken)),
        chosen[0]._replace(entry="mine.infinite", sampler=infinite),
        chosen[0]._replace(entry="mine.long", sampler=ode.rk4(), ts=chosen[0].ts[:1]),
        chosen[1],
    ]
    with jax.enable_x64(True):
        results = comparison.compare(subject, cells, tmp_path).results
    assert (
        "this solver is broken" in results[0].row["note"]
        and "40 of 40 samples are not finite" in results[1].row["note"]
    )
    assert "no step fits: one takes 4" in results[2].row["note"]
    assert "error" in results[3].row and "note" not in results[3].row
    assert (
        len(list(tmp_path.glob("*.npz"))) == 4
    )  # the failure is tried again next time; the exact solution is kept too


def test_a_cell_that_fails_is_told_with_its_reason_and_a_table_of_failures_is_an_error(
    compared, tmp_path, monkeypatch
):
    """In the verdict, and, where nothing has a result, after everything is written."""
    subject, chosen, _, _ = compared
    fails = {
        "ancestral.ddim@uniform_logsnr": UserError("refused by name"),
        "ancestral.ddpm": IndexError("list index out of range"),
    }

    def judged(subject, cell, about, *rest):
        if cell.entry in fails:
            raise fails[cell.entry]
        return Result(about | {"error": 0.1})

    monkeypatch.setattr(comparison, "_judged", judged)
    with jax.enable_x64(True):
        found = comparison.compare(
            subject._replace(exact=lambda: ((), "not needed")), chosen[::2], tmp_path
        )
    told = comparison.failures(found)
    assert (
        told[0] == "ancestral.ddim@uniform_logsnr at 9 NFE has no result: refused by name"
        and len(told) == 2
    )
    assert told[1].startswith(
        "ancestral.ddpm at 9 NFE has no result: IndexError: list index out of range"
    )
    comparison.need_results([result.row for result in found.results])
    with pytest.raises(
        UserError, match="no cell has a result; the first failed because: refused by name"
    ) as caught:
        comparison.need_results([found.results[0].row, found.results[2].row])
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_an_error_where_no_cell_has_a_result(tmp_path, monkeypatch):
    class Broken(NamedTuple):
        experiment = experiment.assemble(toy.get_config("vp"), (2,))

    subject = comparison.Subject(*[None] * len(comparison.Subject._fields))._replace(
        name="broken", identity={}, keys=(), floor={}
    )
    found = Comparison(
        [Result({"sampler": "ancestral.ddim", "nfe": 5, "seeds": "0", "note": "out of order"})],
        Result({"what": ""}),
    )
    monkeypatch.setattr(comparison, "of_model", lambda *args, **options: subject)
    monkeypatch.setattr(comparison, "compare", lambda *args, **options: found)
    monkeypatch.setattr(
        sampler_comparison,
        "write",
        lambda subject, compared, stem, record: stem.write_text("written"),
    )
    with pytest.raises(
        UserError, match="no cell has a result; the first failed because: out of order"
    ):
        sampler_comparison.compare_model(
            Broken(), None, "broken", ["ancestral.ddim"], [5], [0], tmp_path, tmp_path / "stem", {}
        )
    assert (tmp_path / "stem").read_text() == "written"


def test_names_and_budgets_are_checked_before_anything_runs():
    mistakes = (
        (["ode.hun"], [5], "did you mean 'ode.heun'"),
        (["ode.heun@karas"], [5], "did you mean 'karras'"),
        (["ode.heun"], [0], "budgets of at least 1"),
        ([], [5], "needs samplers"),
    )
    for entries, budgets, said in mistakes:
        with pytest.raises(UserError, match=said):
            comparison.cells(entries, budgets, schedules.VP(), "uniform")


# ---- the verdict ----
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
    worse, noise = comparison.margin(a, b, "error")
    assert worse == pytest.approx(0.6) and noise == pytest.approx(
        np.std([0.5, 0.5, 0.8], ddof=1) / np.sqrt(3)
    )
    worse, noise = comparison.margin(
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
    five, ten = comparison.sentences(Comparison(results, Result({"what": ""})))
    assert five == (
        "At 5 NFE, a tie within noise, best by sliced Wasserstein: good (0.1), near (0.11), then bad (0.5); "
        "nearest to the exact solution is good (0.01), then near (0.02), 2 times as far."
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
    five = comparison.sentences(Comparison(results[:3], perfect))[0]
    assert (
        "2 samplers cannot be told from the exact solution by sliced Wasserstein (0.12): good (0.1), near (0.11)"
        in five
    )
    assert comparison.sentences(
        Comparison([Result({"sampler": "a", "nfe": 5})], Result({"what": ""}))
    ) == ["At 5 NFE, no sampler has a result."]


def test_what_scores_no_worse_than_the_truth_itself_has_no_order_but_noise():
    def sure(value):
        return [value] * 5

    results = [
        result("a", 5, 0.08, left_out=sure(0.08)),
        result("b", 5, 0.10, left_out=sure(0.10)),
        result("c", 5, 0.30, left_out=sure(0.30)),
    ]
    compared = Comparison(results, Result({"what": ""}), {"sliced_wasserstein": 0.12})
    there, tied, perfect, beyond = comparison.ranking(compared, 5, "sliced_wasserstein")
    assert (tied, perfect, beyond) == (2, False, 2)
    assert comparison.sentences(compared) == [
        "At 5 NFE, a tie, best by sliced Wasserstein: a (0.08), b (0.1); 2 of them score no worse than the truth itself (0.12), "
        "so their order is noise, then c (0.3)."
    ]
    alone = comparison.sentences(compared._replace(results=results[1:]))
    assert alone == [
        "At 5 NFE, best by sliced Wasserstein is b (0.1), no worse than the truth itself (0.12), which is noise, then c (0.3)."
    ]
    assert (
        "worse by 0.02"
        in comparison.sentences(compared._replace(floor={"sliced_wasserstein": 0.01}))[0]
    )
    scored = [
        Result({"sampler": name, "nfe": 5, "accuracy": value})
        for name, value in (("a", 0.99), ("b", 0.98), ("c", 0.9))
    ]
    assert (
        comparison.ranking(Comparison(scored, Result({}), {"accuracy": 0.97}), 5, "accuracy").tied
        == 2
    )


def test_the_frechet_distance_of_inceptions_features_is_called_fid():
    assert (
        comparison.names("inception")["frechet"] == "FID"
        and comparison.names("pixels")["frechet"] == "Fréchet distance"
    )
    found = [
        Result({"sampler": name, "nfe": 5, "frechet": value})
        for name, value in (("a", 0.9), ("b", 1.9))
    ]
    compared = Comparison(found, Result({"what": ""}), {}, comparison.names("inception"))
    assert comparison.sentences(compared) == [
        "At 5 NFE, best by FID is a (0.9), then b (1.9), worse by 1."
    ]


def test_a_model_of_larger_images_is_compared_by_the_classifiers_features_under_plain_names(
    monkeypatch,
):
    asked = []

    def against(train, labels, **how):
        asked.append(how["features"])
        return lambda images, labels=None: {
            "accuracy": 0.5,
            f"frechet/{how['features'][0]}": float(len(images)),
        }

    monkeypatch.setattr(comparison.judge, "against", against)
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    built = experiment.assemble(config, (24, 24, 3), 10)
    source = data.sources.Arrays(np.zeros((30, 24, 24, 3), np.uint8), np.arange(30) % 10)
    dataset = data.Dataset("colours", source, source, built.shape, 10, None)
    trained = Trained(built, {}, 1, "params", {})
    found = [
        comparison.of_model(trained, dataset, range(20), "colours", features=features)
        for features in ("", "inception")
    ]
    assert asked == [("classifier",), ("inception",)] and [
        subject.features for subject in found
    ] == ["classifier", "inception"]
    assert (
        found[0].floor
        == found[1].judge(np.zeros((20, 24, 24, 3), np.uint8), None)
        == {"accuracy": 0.5, "frechet": 20.0}
    )
    assert (
        found[0].identity != found[1].identity
        and found[0].judge(source.columns["image"][:20], 0)["frechet"] == 16
    )


def test_more_recognized_is_better():
    results = [
        Result({"sampler": name, "nfe": 5, "accuracy": value})
        for name, value in (("a", 0.8), ("b", 0.9))
    ]
    assert [
        r.row["sampler"]
        for r in comparison.ranking(Comparison(results, Result({})), 5, "accuracy").there
    ] == ["b", "a"]


# ---- a model ----
def test_a_model_is_compared_with_its_own_fine_solution(tmp_path, monkeypatch):
    """A network with fresh weights: what is judged, kept and written does not depend on how good it
    is.
    """
    monkeypatch.setattr(comparison, "FINE", 81)
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    built = experiment.assemble(config, (8, 8, 1), 10)
    trained = Trained(built, built.kind.init(built, jax.random.key(0)), 7, "params", {})
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8), np.arange(60) % 10
    source = data.sources.Arrays(images, labels)
    dataset = data.Dataset("noise", source, source, (8, 8, 1), 10, None)
    record = {"provenance": comparison.provenance.provenance(), "step": 7, "weights": "params"}
    entries = ["ancestral.ddim", "ode.edm_heun@karras"]
    text = sampler_comparison.compare_model(
        trained,
        dataset,
        "noise",
        entries,
        [3, 21],
        range(12),
        tmp_path / "compare",
        tmp_path / "samplers",
        record,
    )
    written = json.loads((tmp_path / "samplers.json").read_text())
    rows = {(row["sampler"], row["nfe"]): row for row in written["rows"]}
    assert rows["ode.edm_heun@karras", 21]["error"] < rows["ode.edm_heun@karras", 3]["error"]
    assert {"accuracy", "frechet", "seconds_per_image", "step", "weights"} <= rows[
        "ancestral.ddim", 3
    ].keys()
    assert (
        "81 NFE, which halving its steps moves by" in text and text.count("| ancestral.ddim |") == 2
    )
    with Image.open(tmp_path / "samplers_strips.png") as picture:
        assert picture.width > 300


# ---- the page, and the command as typed ----
def self_contained(page: str) -> bool:
    return not re.search(
        r"https?:|file:|<link[^>]+href=\"(?!data:)|src=\"(?!data:image/png;base64,)|@import|url\(",
        page,
    )


def test_the_command_compares_on_a_target_and_resumes(tmp_path):
    args = [
        "--target=gmm8",
        "--process=schedules.EDM()",
        "--samplers=ancestral.ddim@karras;ancestral.ddpm",
        "--nfe=4,8",
        "--num=30",
        f"--out={tmp_path}",
    ]
    first = command(*args)
    assert "At 8 NFE, " in first.stdout and "solving for the exact" in first.stderr
    before = json.loads((tmp_path / "compare.json").read_text())["rows"]
    second = command(*args)
    assert "4 of 4 cells are taken" in second.stderr and "solving" not in second.stderr
    assert json.loads((tmp_path / "compare.json").read_text())["rows"] == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "compare",
        *(f"compare{end}" for end in (".html", ".json", ".md", ".png", "_strips.png")),
    }
    page = (tmp_path / "compare.html").read_text()
    assert self_contained(page) and not self_contained('<img src="compare.png">')
    assert page.count("data:image/png;base64,") >= 1 + 2 + 4 and "At 8 NFE, " in page
    gallery = page[page.index('<table class="gallery">') :]
    assert (
        page.index("<figcaption>real data")
        < page.index("<figcaption>exact solution")
        < page.index('<table class="gallery">')
    )
    assert (
        "real data" not in gallery[: gallery.index("</table>")]
        and "RMS error 0." in gallery
        and "Wasserstein 0." in gallery
    )


def test_the_command_lists_every_sampler_with_its_cost_and_kind():
    shown = command("--list").stdout
    assert re.search(r"ancestral.ddpm +1 a step +stochastic", shown)
    assert re.search(r"ode.heun +2 a step +deterministic", shown)
    for name in (
        "karras",
        "gmm8",
        "schedules.EDM",
        *comparison.build.__globals__["members"](components.SAMPLERS),
    ):
        assert f"  {name} " in shown


@pytest.mark.parametrize(
    "args, said",
    [
        (["--target=gmmm8"], "did you mean 'gmm8'"),
        (["--target=gmm8", "--samplers=ode.hun"], "did you mean 'ode.heun'"),
        (["--target=gmm8", "--process=VPP"], "unknown process 'VPP'"),
        (["--target=gmm8", "--nfe=5,x"], "--nfe=5,x: write whole numbers"),
        (["--samplers=ode.heun"], "--workdir is missing"),
    ],
)
def test_a_mistake_gets_one_clear_line(args, said, tmp_path):
    done = command(*args, *([f"--out={tmp_path / 'out'}"] if len(args) > 1 else []), expect=2)
    assert (
        done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr
    ), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_page_takes_text_literally_and_sorts_by_value(tmp_path):
    rows = [
        {"a": "<b>&", "x": 0.123456, "note": None},
        {"a": "plain", "x": float("nan"), "note": "went wrong"},
    ]
    table = html.table(
        rows,
        {"a": "A", "x": "X", "note": "note"},
        best=lambda row, key: key == "x" and row["a"] == "plain",
    )
    assert (
        "&lt;b&gt;&amp;" in table
        and 'data-v="0.123456">0.1235<' in table
        and 'class="number best" data-v="">nan<' in table
    )
    html.save(
        tmp_path / "a.html",
        html.page("T", [("H", table + html.picture(np.zeros((2, 2, 3), np.uint8)))]),
    )
    assert self_contained((tmp_path / "a.html").read_text())


# ---- times placed by experiments.optimize_grid ----
@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """(file without ending, text, the same again with changes, held-out seeds): eight Gaussians,
    few starts.
    """
    stem = tmp_path_factory.mktemp("grids") / "mine"
    with jax.enable_x64(True):  # as many starts as held-out seeds: the same shapes compile once
        made = [
            comparison.of_target("gmm8", "schedules.EDM()", list(range(first, first + 12)))
            for first in (100, 0)
        ]
    made = [subject._replace(exact=functools.cache(subject.exact)) for subject in made]

    def placing(budgets=(5, 9), iterations=3):
        with jax.enable_x64(True):
            return grid_search.optimize(
                *made, "multistep.dpmpp_2m", budgets, stem, iterations=iterations, tries=1
            )

    return stem, placing(), placing, made[1]


def test_times_spread_as_those_of_another_budget():
    """Even steps of the log-SNR stay even in any number of them."""
    process = schedules.EDM()
    lam = gaussian.logsnr(process, grids.uniform_logsnr(process, 6))
    np.testing.assert_allclose(
        grid_search.spread(process, lam, 9), grids.uniform_logsnr(process, 9), rtol=1e-4, atol=1e-6
    )


def test_placed_times_beat_the_hand_made_grids_and_are_written_with_their_figure(placed):
    stem, text, *_ = placed
    kept = json.loads(stem.with_suffix(".json").read_text())
    assert {n: len(lam) for n, lam in kept["logsnr"].items()} == {"5": 5, "9": 9}
    assert all(np.all(np.diff(lam) > 0) for lam in kept["logsnr"].values())
    error = {(row["sampler"], row["nfe"]): row["error"] for row in kept["rows"]}
    own = multistep.dpmpp_2m().grid  # what 'auto' means
    assert {name for name, _ in error} == {*grid_search.HAND_MADE, "placed"} - {"auto"} | {own}
    for nfe in (5, 9):
        assert error["placed", nfe] < min(
            value for (name, n), value in error.items() if n == nfe and name != "placed"
        )
    assert (
        text == stem.with_suffix(".md").read_text() and "float64 solve" in text and "| 9 |" in text
    )
    assert "distance to the exact samples" in text and all(row["shift"] > 0 for row in kept["rows"])
    assert "commit" in kept["provenance"] and kept["starts"] == kept["num"] == 12
    with Image.open(stem.with_suffix(".png")) as picture:
        assert picture.width > 600


def test_a_second_run_solves_and_places_nothing_anew_and_another_one_says_that_it_does(
    placed, monkeypatch, capsys
):
    stem, text, placing, _ = placed
    before, asked = stem.with_suffix(".json").read_bytes(), []
    monkeypatch.setattr(
        grid_search, "place", lambda *args, **kwargs: asked.append(args[3]) or 1 / 0
    )
    assert placing() == text and stem.with_suffix(".json").read_bytes() == before
    assert capsys.readouterr().err == "" and asked == []
    for changed, nfe in (({"budgets": (5, 9, 12)}, 12), ({"iterations": 4}, 5)):
        with pytest.raises(ZeroDivisionError):
            placing(**changed)
        assert (
            asked.pop() == nfe and stem.with_suffix(".json").read_bytes() == before
        )  # what was there is there until then
    assert "made with other settings" in capsys.readouterr().err


def test_a_stored_grid_in_a_comparison_scores_what_it_scored_when_it_was_placed(placed, tmp_path):
    stem, _, _, subject = placed
    with jax.enable_x64(True):
        entries = [f'multistep.dpmpp_2m@stored("{stem}.json")']
        found = comparison.compare(
            subject, comparison.cells(entries, [5, 9], subject.process, "uniform"), tmp_path
        ).results
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    error = {row["nfe"]: row["error"] for row in rows if row["sampler"] == "placed"}
    for result in found:
        assert result.row["error"] == pytest.approx(error[result.row["nfe"]], rel=1e-6)
    with pytest.raises(UserError, match="has grids of 5, 9 times, not of 7"):
        comparison.cells(entries, [7], subject.process, "uniform")


def test_a_models_own_grid_is_taken_by_its_name(tmp_path):
    """The commands as typed, on a tiny network for points; sampling on the placed times is not
    sampling on the config's.
    """
    config = toy.get_config("vp")
    config.model.update(width=8, blocks=1)
    config.training.update(
        steps=100, log_every=100, eval_every=0, sample_every=0, checkpoint_every=100
    )
    config.optimizer.learning_rate = 1e-2  # a fresh network says nothing, on any times
    root = tmp_path / "toy"
    assert train.train(config.lock(), str(root))
    told = command(
        f"--workdir={root}",
        "--nfe=4",
        "--starts=10",
        "--num=10",
        "--iterations=2",
        "--tries=1",
        "--name=mine",
        main="optimize_grid",
    )
    assert "--config.sampler.grid=mine" in told.stdout and "from" in told.stderr
    assert {path.name for path in (root / "grids").iterdir()} == {
        "mine.json",
        "mine.md",
        "mine.png",
    }
    use = [
        f"--workdir={root}",
        "--num=10",
        "--config.sampler.name=multistep.dpmpp_2m",
        "--config.sampler.nfe=4",
    ]
    shown = command(*use, "--config.sampler.grid=mine", main="sample")
    assert "grid mine, 4 evaluations" in shown.stderr
    trained = workdir.load(root, workdir.saved_config(str(root)))
    keys, drawn = generate.seeds_to_keys(range(10)), np.load(root / "samples.npz")["images"]
    for grid, same in (("mine", True), ("uniform_logsnr", False)):
        plan = sampling.plan(trained.experiment, name="multistep.dpmpp_2m", nfe=4, grid=grid)
        points = sampling.sample_with(trained.experiment, trained.params, plan)(keys, None)
        assert np.allclose(points, drawn, rtol=1e-4, atol=1e-4) == same, grid


@pytest.mark.parametrize(
    "spec, budgets, said",
    [
        ("ancestral.ddpm", [5], "ancestral.ddpm draws noise"),
        ("adaptive.tsit5", [5], "adaptive.tsit5 chooses its own steps"),
        ("ode.rk4", [5, 4], "--nfe=5,4: budgets are needed that buy at least one step of ode.rk4"),
        ("multistep.dpmpp_2n", [5], "did you mean 'multistep.dpmpp_2m'"),
    ],
)
def test_times_are_placed_for_a_deterministic_sampler_with_a_step(spec, budgets, said):
    with pytest.raises(UserError, match=re.escape(said)):
        grid_search.checked(spec, budgets, schedules.VP())


def test_a_name_for_placed_times_comes_from_the_sampler_and_hides_no_grid():
    assert grid_search.grid_name("", "multistep.unipc(order=2)") == "multistep_unipc_order_2"
    assert grid_search.grid_name("", "multistep.dpmpp_2m") == "dpmpp_2m"
    with pytest.raises(UserError, match="--name=karras is a grid of the family"):
        grid_search.grid_name("karras", "multistep.dpmpp_2m")


def test_a_sampler_whose_times_cannot_be_placed_is_told_in_a_line_before_anything_is_solved(
    tmp_path,
):
    done = command(
        "--target=gmm8",
        "--sampler=sde.sa",
        f"--out={tmp_path / 'out'}",
        main="optimize_grid",
        expect=2,
    )
    assert (
        done.stderr.startswith("error: --sampler=sde.sa draws noise")
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()
