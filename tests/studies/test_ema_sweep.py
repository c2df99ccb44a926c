"""The sweep of the lengths of a power EMA: its table, and the command on a run with snapshots."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import digits
from diffusion_jax.assembly import train, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import sweeps
from diffusion_jax.studies.sweep import cells as sweep_cells
from diffusion_jax.studies.sweep import ema_sweep
from diffusion_jax.studies.sweep.cells import CellScores
from diffusion_jax.training import post_hoc
from tests.markdown import squeezed


def test_the_table_has_the_mean_over_sets_and_marks_lengths_that_snapshots_do_not_give(tmp_path):
    for step in (1, 2):
        post_hoc.save(tmp_path, step, {"power_0.1": {"a": np.ones(2, np.float32)}})
    # two sets of seeds of each length: cells 0 and 2, 1 and 3
    scores = [
        CellScores(10, {"frechet": value}, {"frechet": 0.3}) for value in (1.0, 3.0, 2.0, 5.0)
    ]
    task = SimpleNamespace(cells=range(4), num=10)
    results = {(number, 10): found for number, found in enumerate(scores)}
    rows = ema_sweep.rows_of(task, results, tmp_path, [0.1, 0.01])
    assert [row["length"] for row in rows] == [0.1, 0.01]
    assert rows[0]["misfit"] < 1e-6 and rows[1]["misfit"] > ema_sweep.DOUBTFUL
    assert rows[0]["frechet"] == pytest.approx((1.5, 0.3 / np.sqrt(2)))
    table = squeezed(ema_sweep.report(rows, str.upper))
    assert "FRECHET" in table and "| 1.50 ± 0.21 |" in table and "0.01*" in table
    assert "95 % interval" in table and "too few snapshots" in table
    sweeps.lengths(rows, tmp_path / "a.png", features="pixels", title="a")
    assert (tmp_path / "a.png").stat().st_size > 5000
    failed = results | {(2, 10): CellScores(10, {}, note="not finite")}
    with pytest.raises(UserError, match="--lengths=0.1: not finite"):
        ema_sweep.rows_of(task, failed, tmp_path, [0.1, 0.01])


def test_lengths_of_a_sweep():
    assert ema_sweep.lengths_of("0.1,0.05") == [0.05, 0.1]
    for text, said in (("0.1;0.2", "write relative lengths with commas"), ("0.4", "at most 0.28")):
        with pytest.raises(UserError, match=said):
            ema_sweep.lengths_of(text)


@pytest.mark.long
def test_the_command_measures_each_length_on_disjoint_seeds_once(tmp_path, monkeypatch, capsys):
    config = digits.get_config("vp")
    config.data.update(batch_size=16, data_dir=str(tmp_path / "data"))
    config.model.update(width=8, multipliers=(1,), blocks=0, attention=(), head_width=8)
    config.training.update(steps=4, log_every=4, eval_every=0, sample_every=0, checkpoint_every=4)
    config.ema.update(powers=(0.05, 0.1), snapshot_every=1)
    config.sampler.update(nfe=2, guidance=1.0)
    root = tmp_path / "run"
    assert train.train(config.lock(), str(root))
    asked = {"lengths": "0.1,0.2", "num": 10, "repeats": 2, "features": "", "metrics": "frechet"}

    def command():
        ema_sweep.ema_sweep(workdir.saved_config(root), workdir=str(root), **asked)
        return json.loads((root / "ema_sweep.json").read_text())

    rows = command()["rows"]
    assert [row["length"] for row in rows] == [0.1, 0.2]
    assert rows[0]["frechet"] != rows[1]["frechet"] and rows[0]["frechet"][1] > 0
    assert "EMA sweep: 40/40 samples" in capsys.readouterr().err
    assert len(list((root / "ema_sweep" / "cells").glob("*.npz"))) == 4
    monkeypatch.setattr(sweep_cells.CellSampler, "plan", lambda *args: 1 / 0)  # nothing is drawn
    found = command()
    assert found["rows"] == rows and found["repeats"] == 2 and found["provenance"]["config_hash"]
    assert "post_hoc(LENGTH)" in capsys.readouterr().out
    assert (root / "ema_sweep.png").stat().st_size > 5000
