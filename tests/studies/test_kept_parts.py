"""Every resumable command computes a damaged intermediate result again, and says so."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest

from configs import families
from diffusion_jax.assembly import train_latent, workdir
from diffusion_jax.core import reading
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import frechet, statistics
from diffusion_jax.evaluation.features import extractor
from diffusion_jax.studies import plans
from diffusion_jax.studies.families import measures, tasks, training
from diffusion_jax.studies.few_step import methods
from diffusion_jax.studies.few_step import report as few_step_report
from diffusion_jax.studies.grids import file as grid_file
from diffusion_jax.studies.inverse import table
from diffusion_jax.studies.samplers import cells
from tests.markdown import squeezed
from tests.spoiled import CARD, GRID, PLACED, spoiled


def whole_and_spoiled(path: Path, run, made: list, capsys) -> None:
    """run() is not to make anything where the part at `path` is whole, and to make it, with a
    warning, where it is spoiled.
    """
    run()
    assert made
    made.clear()
    capsys.readouterr()
    run()
    assert not made and "warning" not in capsys.readouterr().err
    for _ in spoiled(path):
        run()
        said = capsys.readouterr().err
        assert made and "warning: " in said and "made again" in said and path.name in said
        made.clear()
        if not path.is_file():
            path.unlink(missing_ok=True)


def test_the_rows_of_the_inverse_benchmark(tmp_path, capsys):
    made = []

    def run():
        table.timed_row(
            table.open_rows(tmp_path / "a.json", {"target": "gmm8"}),
            {"method": "dps()"},
            lambda: (
                made.append(1)
                or {
                    "psnr": [1.0],
                    "bias": 0.5,
                    "evaluations": None,
                    "draws": [[0.1, 0.2]],
                    "shown": np.zeros((1, 2, 2, 1), int),
                }
            ),
            "",
        )

    whole_and_spoiled(tmp_path / "a.json", run, made, capsys)


def test_placed_times(tmp_path, capsys):
    path, about = tmp_path / "a.json", {"sampler": "x"}
    path.write_text(json.dumps(PLACED))
    assert grid_file.open_grids(path, about).rows == PLACED["rows"]
    for _ in spoiled(path):
        assert grid_file.open_grids(path, about).content == {"logsnr": {}, "rows": []}
        assert "made again" in capsys.readouterr().err


def test_searched_times(tmp_path, capsys, monkeypatch):
    class Searches(Exception):
        """It has begun."""

    def begin(*args):
        raise Searches

    path = tmp_path / "a.json"
    model = types.SimpleNamespace(record={}, origins={})
    trained = workdir.Trained(model, None, 0, "params", {})
    path.write_text(json.dumps(GRID | {"of": methods.times_hash(trained, 10, 40)}))
    monkeypatch.setattr("diffusion_jax.assembly.sampling.method", begin)
    methods.search_times(trained, None, [1, 3], 10, path)
    with pytest.raises(Searches):  # a budget that was not searched
        methods.search_times(trained, None, [3, 9], 10, path)
    assert not capsys.readouterr().err
    with pytest.raises(Searches):  # the run was trained further
        methods.search_times(trained._replace(step=1), None, [3], 10, path)
    assert "was made with other settings and is started anew" in capsys.readouterr().err
    for _ in spoiled(path):
        with pytest.raises(Searches):
            methods.search_times(trained, None, [3], 10, path)
        assert "made again" in capsys.readouterr().err


def test_a_training_time_that_is_not_known_is_not_zero(tmp_path):
    """That of a published teacher, for example."""
    assert methods.seconds(tmp_path) is None
    rows = [{"sampler": "diffusion", "nfe": 1, "seconds": None, "note": "failed"}]
    table = squeezed(few_step_report.report(rows, [1], {}))
    assert "| diffusion | unknown | failed |" in table


def test_the_families(tmp_path, capsys, monkeypatch):
    made, settings = [], families.get_config("digits")
    settings.update(images=64, points=(1.0,))
    own = settings.family.ddpm
    own.data = settings.data
    point = training.Point(1, 64, 0.5)
    monkeypatch.setattr(
        tasks,
        "train_family",
        lambda *args: training.FamilyRun(tmp_path, own, (point,)),
    )
    shown = {"images": np.zeros((2, 2, 2, 1), np.uint8)}
    monkeypatch.setattr(
        measures, "of_images", lambda *args: made.append(1) or ({"frechet": 2.0}, shown)
    )
    monkeypatch.setattr(measures, "at_the_end", lambda *args: ({"bits": 3.0}, {}))
    monkeypatch.setattr("diffusion_jax.assembly.workdir.load", lambda *args, **options: None)
    task = tasks.FamilyTask("ddpm", 0)

    def run():
        found = tasks.run(tmp_path, task, own, settings, None, list)
        assert found.row["frechet"] == 2.0 and found.row["minutes"] == 0.5

    run()
    (path,) = (tmp_path / "ddpm_0" / "measured").glob("*.npz")
    made.clear()
    run()
    assert not made
    for _ in spoiled(path):
        run()
        assert made and "made again" in capsys.readouterr().err
        made.clear()


def test_the_latents(tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr("diffusion_jax.assembly.workdir.saved_config", lambda *args: None)
    monkeypatch.setattr(
        "diffusion_jax.assembly.workdir.load",
        lambda *args: workdir.Trained(None, None, 0, "params", {}),
    )
    monkeypatch.setattr("diffusion_jax.assembly.autoencoders.codec", lambda *args: None)
    monkeypatch.setattr(
        "diffusion_jax.assembly.train_latent.encode",
        lambda *args, **how: made.append(1) or tmp_path / "latents.npz",
    )
    (tmp_path / "latents.npz").write_bytes(b"PK\x03\x04 and no more")
    assert (
        train_latent.encoded(tmp_path) == tmp_path / "latents.npz"
        and made
        and "made again" in capsys.readouterr().err
    )


def test_the_cards_of_a_plan(tmp_path, capsys):
    record = {
        "topology": "cpu:1",
        "hbm": None,
        "config": {},
        "provenance": {"commit": "a", "versions": {}},
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record | {"cards": {"none": CARD}}))
    assert plans._known(path, record) == {"none": CARD}
    for _ in spoiled(path):
        assert plans._known(path, record) == {} and "made again" in capsys.readouterr().err
    path.write_text(json.dumps(record | {"cards": {"none": CARD | {"fits": "yes"}}}))
    assert (
        plans._known(path, record) == {} and 'cards.none.fits is "yes"' in capsys.readouterr().err
    )


def test_the_moments_of_interrupted_statistics(tmp_path, capsys):

    source, partial = (
        Arrays(np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)),
        tmp_path / "partial.npz",
    )
    whole = statistics.compute(extractor("pixels"), source, "a", "train")
    statistics.save(
        partial, statistics.Statistics(frechet.Moments(3, np.zeros(4), np.eye(4)), whole.of)
    )
    for _ in spoiled(partial):
        assert (
            statistics._so_far(partial, whole.of) is None
            and "made again" in capsys.readouterr().err
        )
    assert statistics._so_far(partial, whole.of).count == 3


def test_the_cells_of_a_comparison(tmp_path, capsys):
    path = tmp_path / "a.npz"
    row = {
        "sampler": "ancestral.ddim",
        "grid": "uniform",
        "nfe": 5,
        "evaluations": 5,
        "frechet": 1.0,
        "stochastic": False,
    }
    kept = cells.Result(row, np.zeros((3, 2)), np.ones(3), {"frechet": np.ones(cells.GROUPS)})

    def read():
        return reading.kept(path, lambda path: cells._read(path, 3))

    cells._save(path, kept)
    assert read().row == row and set(read().left_out) == {"frechet"}
    for _ in spoiled(path):
        assert read() is None and "made again" in capsys.readouterr().err
    for other in (
        kept._replace(row={}),
        kept._replace(row=row | {"nfe": "x"}),
        kept._replace(row=row | {"frechet": [1]}),
        kept._replace(row=row | {"frechet": "1"}),
        kept._replace(samples=np.zeros((4, 2))),
        kept._replace(samples=np.full((3, 2), np.nan)),
        kept._replace(left_out={"frechet": np.ones(2)}),
    ):
        cells._save(path, other)
        assert read() is None and "made again" in capsys.readouterr().err
