"""The comparison of samplers on an analytic target: the work itself, resumed, and what fails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import classifier
from diffusion_jax.processes import schedules
from diffusion_jax.samplers import ancestral, base, ode
from diffusion_jax.studies import subjects
from diffusion_jax.studies.samplers import cells as comparison
from diffusion_jax.studies.samplers import ranking
from diffusion_jax.studies.samplers.cells import Result
from diffusion_jax.targets import reference

ENTRIES = ["ancestral.ddim@uniform_logsnr", "ode.edm_heun@uniform_logsnr", "ancestral.ddpm"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three samplers on eight Gaussians at two budgets, by the functions behind the command."""
    root = tmp_path_factory.mktemp("gmm8")
    with jax.enable_x64(True):
        subject = subjects.of_target("gmm8", "schedules.VP()", list(range(40)))
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
    return build(components.GRIDS, "uniform_logsnr", process, n)


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

    def broken(noise, x, t, s, denoise, process, cond):
        raise RuntimeError("this solver is broken")

    infinite = base.memoryless(lambda noise, x, t, s, denoise, process, cond: x / 0.0)
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


def test_a_cell_that_fails_is_reported_with_its_reason_and_a_table_of_failures_is_an_error(
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
    sentences = ranking.failures(found)
    assert (
        sentences[0] == "ancestral.ddim@uniform_logsnr at 9 NFE has no result: refused by name"
        and len(sentences) == 2
    )
    assert sentences[1].startswith(
        "ancestral.ddpm at 9 NFE has no result: IndexError: list index out of range"
    )
    ranking.need_results([result.row for result in found.results])
    with pytest.raises(
        UserError, match="no cell has a result; the first failed because: refused by name"
    ) as caught:
        ranking.need_results([found.results[0].row, found.results[2].row])
    assert "\n" not in str(caught.value)


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


def test_a_model_of_larger_images_is_compared_by_the_first_features_under_plain_names(monkeypatch):
    untrained = classifier.init((24, 24, 3), 10)
    monkeypatch.setattr(classifier, "_train", lambda images, labels, seen: untrained)
    monkeypatch.setattr(classifier, "_keep", lambda path, params: None)
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    experiment = assemble(config, (24, 24, 3), 10)
    images = np.random.default_rng(0).integers(0, 256, (30, 24, 24, 3)).astype(np.uint8)
    source = data.sources.Arrays(images, np.arange(30) % 10)
    dataset = data.Dataset("colors", source, source, experiment.shape, 10, None)
    trained = Trained(experiment, {}, 1, "params", {})
    first, second = (
        subjects.of_model(trained, dataset, range(20), "colors", features=features, metrics="fd")
        for features in ("", "thumbnails,pixels")
    )
    assert (first.judging.features, second.judging.features) == ("classifier", "thumbnails")
    assert first.judging.truth.keys() == {"frechet"} and first.identity != second.identity
    found = second.measured(images[:20])
    assert found.keys() == {"frechet", "frechet/pixels"} and found["frechet"].interval > 0
    assert second.judging.judge.title("frechet/pixels") == "Fréchet distance of pixels"
