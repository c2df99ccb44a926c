"""The inverse benchmark: on mixtures, whose posteriors are exact, and on images."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.assembly import datasets
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import features
from diffusion_jax.inverse import masks, measurements
from diffusion_jax.studies.inverse import on_images, on_targets
from diffusion_jax.studies.inverse import table as inverse_table
from tests.markdown import squeezed

GRAY = (8, 8, 1)


def settings(target, **more):
    return on_targets.MixtureSettings(
        target, "schedules.VP()", "ancestral.ddim(eta=1.0)", "uniform_logsnr", **more
    )


def test_on_a_mixture_the_exact_posterior_differs_from_an_unguided_model_and_rows_are_kept(
    tmp_path,
):
    file, about = tmp_path / "inverse_benchmark.json", {"target": "gmm8"}
    of = settings("gmm8", num=40, draws=60, std=0.1)
    with jax.enable_x64(True):

        def run():
            table = inverse_table.open_rows(file, about)
            return on_targets.make_rows(of, ["unguided"], [12], table)

        rows = run()
        exact, given_y, blind = rows
        assert (
            exact["bias"] < 0.25
            and abs(exact["variance_ratio"] - 1) < 0.1
            and 0.8 < exact["interval_coverage"] < 0.97
        )
        assert given_y["bias"] < 0.4 and 0.6 < given_y["variance_ratio"] < 1.2
        assert blind["bias"] > 2 * given_y["bias"]
        kept = json.loads(file.read_text())
        kept["rows"][1]["bias"] = -1.0  # a row that is there is not made again
        file.write_text(json.dumps(kept))
        assert run()[1]["bias"] == -1.0
    text = on_targets.report(rows)
    assert text.count("\n") == 5 and "exact posterior" in text
    coverage = float(text.split("\n")[2].split("|")[-2])
    assert "(%)" in text  # the heading's unit
    assert coverage == pytest.approx(100 * exact["interval_coverage"], rel=1e-3)
    on_targets.draw_figures(rows, tmp_path / "inverse_benchmark", "title")
    for name in ("inverse_benchmark.png", "inverse_benchmark_draws.png"):
        assert (tmp_path / name).exists()
    with pytest.raises(UserError, match="not a mixture with a known posterior"):
        on_targets.mixture_of("checkerboard")


def test_a_noisy_measurement_on_a_line(tmp_path):
    """N(0, 1) with noise of 0.5: the draws of repaint are near the posterior, not the prior.

    The prior's variance is five times as large.
    """
    of = settings("standard_normal(dim=1)", num=20, draws=100, std=0.5)
    with jax.enable_x64(True):
        table = inverse_table.open_rows(tmp_path / "a.json", {"target": of.target})
        rows = on_targets.make_rows(of, ["repaint"], [401], table)
    found = rows[-1]
    assert found["method"] == "repaint" and found["evaluations"] == 401
    assert (
        found["bias"] < 0.35
        and 0.7 < found["variance_ratio"] < 1.3
        and found["interval_coverage"] > 0.75
    )
    on_targets.draw_figures(rows, tmp_path / "a", "title")
    assert (tmp_path / "a.png").exists()
    assert not (tmp_path / "a_draws.png").exists()  # there is no plane to draw densities in


def test_on_images(job, tmp_path, monkeypatch):
    pixels = features.extractor("pixels")
    # the classifier would take a minute to train
    monkeypatch.setattr(features, "extractor", lambda *args: pixels)
    dataset = datasets.dataset(ConfigDict(job.trained.experiment.record))
    tasks = on_images.parse_tasks("inpaint@half;superres(factor=2)", GRAY)
    table = inverse_table.open_rows(tmp_path / "b.json", {})
    rows, shown = on_images.make_rows(job, dataset, tasks, ["ddnm"], "", table)
    names = [(row["task"], row["method"]) for row in rows]
    assert names == [
        ("inpaint@half", m) for m in ("y", "mean of known pixels", "mean image", "ddnm")
    ] + [("superres(factor=2)", m) for m in ("y", "nearest", "bicubic", "ddnm")]
    for key in ("psnr", "perceptual"):
        assert all(
            len(row[key]) == len(job.images) and np.isfinite(row[key]).all()
            for row in rows
            if row["method"] != "y"
        )
    scored = [row | {"psnr": [20.0, 22.0], "perceptual": [0.25, 0.25]} for row in rows[1:3]]
    scored[1]["psnr"] = [19.0, 21.0]
    table = squeezed(on_images.report(scored))
    assert (
        "| **21.00** ± 1.00 | **0.2500** ± 0.0000 |" in table
        and "| 20.00 ± 1.00 |" in table
        and table.count("\n") == 2 + 2
    )
    on_images.draw_strips(rows, shown, tmp_path / "b.png")
    assert "colorize" not in on_images.parse_tasks(on_images.TASKS, GRAY)
    assert "colorize" in on_images.parse_tasks(on_images.TASKS, (32, 32, 3))


def test_baselines_against_plain_numbers():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 1)).astype("float32")
    mask = masks.half((4, 4, 1))
    measurement = measurements.inpaint((4, 4, 1), mask)
    filled = on_images.baselines(
        "inpaint", measurement, measurement.forward(x), (4, 4, 1), np.full((4, 4, 1), 0.3)
    )
    np.testing.assert_allclose(
        filled["mean of known pixels"][:, 2:, :, 0],
        np.repeat(x[:, :2].mean((1, 2)), 8).reshape(2, 2, 4),
        rtol=1e-5,
    )
    np.testing.assert_allclose(filled["mean image"][:, 2:], 0.3)
    np.testing.assert_array_equal(filled["mean image"][:, :2], x[:, :2])


def test_rows_of_earlier_versions_have_the_names_of_today(tmp_path):
    about = {"target": "gmm8"}
    row = {"task": "half", "method": "ddnm", "evaluations": 20, "coverage": 0.9}
    file = tmp_path / "inverse_benchmark.json"
    file.write_text(json.dumps({"about": about, "rows": [row]}))
    (found,) = inverse_table.open_rows(file, about).rows
    assert found["interval_coverage"] == 0.9 and "coverage" not in found
