"""The command optimize_grid: times placed on a target and on a tiny model, kept and used."""

from __future__ import annotations

import functools
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs import toy
from diffusion_jax.assembly import sampling, train, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import grids, multistep
from diffusion_jax.studies import subjects
from diffusion_jax.studies.grids import report, search
from diffusion_jax.studies.samplers import cells
from tests import commands
from tests.markdown import squeezed


def command(*args, expect=0, main="compare_samplers"):
    done = commands.run(main, *args)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_a_score_of_nothing_has_no_ratio():
    """As the total variation of a table may be 0, and KID below it."""
    for score in (0.0, -0.1):
        rows = [{"nfe": 2, "sampler": name, "kid": score} for name in (report.PLACED, "karras")]
        assert report.report(rows, ["kid"], "pixels").rstrip("| \n").endswith("| -")


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """(file without ending, text, the same again with changes, held-out seeds): eight Gaussians,
    few starts.
    """
    stem = tmp_path_factory.mktemp("grids") / "mine"
    with jax.enable_x64(True):  # as many starts as held-out seeds: the same shapes compile once
        made = [
            subjects.of_target("gmm8", "schedules.EDM()", list(range(first, first + 12)))
            for first in (100, 0)
        ]
    made = [subject._replace(exact=functools.cache(subject.exact)) for subject in made]

    def placing(budgets=(5, 9), iterations=3):
        with jax.enable_x64(True):
            return search.optimize(
                *made, "multistep.dpmpp_2m", budgets, stem, search.Search(iterations, 1)
            )

    return stem, placing(), placing, made[1]


def test_times_spread_as_those_of_another_budget():
    """Even steps of the log-SNR stay even in any number of them."""
    process = schedules.EDM()
    lam = gaussian.logsnr(process, grids.uniform_logsnr(process, 6))
    np.testing.assert_allclose(
        search.spread(process, lam, 9), grids.uniform_logsnr(process, 9), rtol=1e-4, atol=1e-6
    )


def test_placed_times_beat_the_hand_made_grids_and_are_written_with_their_figure(placed):
    stem, text, *_ = placed
    kept = json.loads(stem.with_suffix(".json").read_text())
    assert {n: len(lam) for n, lam in kept["logsnr"].items()} == {"5": 5, "9": 9}
    assert all(np.all(np.diff(lam) > 0) for lam in kept["logsnr"].values())
    error = {(row["sampler"], row["nfe"]): row["error"] for row in kept["rows"]}
    own = multistep.dpmpp_2m().grid  # what 'auto' means
    assert {name for name, _ in error} == {*search.HAND_MADE, "placed"} - {"auto"} | {own}
    for nfe in (5, 9):
        assert error["placed", nfe] < min(
            value for (name, n), value in error.items() if n == nfe and name != "placed"
        )
    assert (
        text == stem.with_suffix(".md").read_text()
        and "float64 solve" in text
        and "| 9 |" in squeezed(text)
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
    monkeypatch.setattr(search, "place", lambda *args, **kwargs: asked.append(args[3]) or 1 / 0)
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
        found = cells.compare(
            subject, cells.cells(entries, [5, 9], subject.process, "uniform"), tmp_path
        ).results
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    error = {row["nfe"]: row["error"] for row in rows if row["sampler"] == "placed"}
    for result in found:
        assert result.row["error"] == pytest.approx(error[result.row["nfe"]], rel=1e-6)
    with pytest.raises(UserError, match="has grids of 5, 9 times, not of 7"):
        cells.cells(entries, [7], subject.process, "uniform")


@pytest.mark.long
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
    done = command(
        f"--workdir={root}",
        "--nfe=4",
        "--starts=10",
        "--num=10",
        "--iterations=2",
        "--tries=1",
        "--name=mine",
        main="optimize_grid",
    )
    assert "--config.sampler.grid=mine" in done.stdout and "from" in done.stderr
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
        settings = sampling.with_sampler(trained.experiment.sampling, "multistep.dpmpp_2m")
        plan = sampling.method(trained.experiment, settings._replace(nfe=4, grid=grid))
        points = sampling.sample_with(trained.experiment, trained.params, plan)(keys, None)
        assert np.allclose(points, drawn, rtol=1e-4, atol=1e-4) == same, grid


@pytest.mark.parametrize(
    "spec, budgets, said",
    [
        ("ancestral.ddpm", [5], "ancestral.ddpm draws noise"),
        ("adaptive.tsit5", [5], "adaptive.tsit5 chooses its own steps"),
        (
            "ode.rk4",
            [5, 4],
            "--nfe=5,4: budgets are needed that allow at least one step of ode.rk4",
        ),
        ("multistep.dpmpp_2n", [5], "did you mean 'multistep.dpmpp_2m'"),
    ],
)
def test_times_are_placed_for_a_deterministic_sampler_with_a_step(spec, budgets, said):
    with pytest.raises(UserError, match=re.escape(said)):
        search.check_sampler(spec, budgets, schedules.VP())


def test_a_name_for_placed_times_comes_from_the_sampler_and_hides_no_grid():
    assert search.grid_name("", "multistep.unipc(order=2)") == "multistep_unipc_order_2"
    assert search.grid_name("", "multistep.dpmpp_2m") == "dpmpp_2m"
    with pytest.raises(UserError, match="--name=karras is a grid of the family"):
        search.grid_name("karras", "multistep.dpmpp_2m")
    for name in ("Karras", "AUTO", "KARRAS"):  # specs are read in any case
        with pytest.raises(UserError, match=f"--name={name} is a grid of the family"):
            search.grid_name(name, "multistep.dpmpp_2m")


def test_a_sampler_whose_times_cannot_be_placed_is_refused_in_a_line_before_anything_is_solved(
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
