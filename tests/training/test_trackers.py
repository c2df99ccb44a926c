"""Trackers: a table without a step twice, one run of Weights & Biases for one workdir, and failures
that end nothing.
"""

from __future__ import annotations

import csv
import json
import sys
import threading
import time
import types

import numpy as np
import pytest

from diffusion_jax.assembly import config_schema
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import metrics, trackers, tracking


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(folder, steps, start=0, **how):
    """Rows of these steps and held-out rows at multiples of 20, as the loop writes them."""
    writer = metrics.open_writer(folder, start_step=start, names=("csv",), **how)
    for step in steps:
        writer.row(step, {"images": step, "loss": step / 8}, {"seconds": 1.0})
        if step % 20 == 0:
            writer.row(step, {"images": step, "eval_loss": step / 4}, {"seconds": 2.0})
            writer.sync()
    return writer


def test_the_table_has_a_line_for_each_step_and_columns_that_appear_later(tmp_path):
    write(tmp_path, (10, 20, 30)).close()
    first, second, third = table(tmp_path)
    assert [first["step"], second["step"], third["step"]] == ["10", "20", "30"]
    assert first["loss"] == "1.25" and first["eval_loss"] == third["eval_loss"] == ""
    assert second["eval_loss"] == "5.0" and second["loss"] == "2.5"


def test_a_run_that_was_killed_or_rolled_back_has_no_step_twice(tmp_path):
    write(tmp_path, (10, 20, 30)).close()
    straight = (tmp_path / "metrics.csv").read_bytes()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("40,0.1")  # killed in the middle of a line
    write(tmp_path, (30,), start=20).close()
    assert (tmp_path / "metrics.csv").read_bytes() == straight
    metrics.open_writer(tmp_path, names=("csv",)).close()  # a fresh start
    assert not (tmp_path / "metrics.csv").exists()


def test_numbers_that_are_not_finite_have_no_value(tmp_path):
    writer = metrics.open_writer(tmp_path, names=("csv",))
    writer.row(1, {"loss": 1.0})
    writer.row(2, {"loss": float("nan")})
    writer.close()
    assert [row["loss"] for row in table(tmp_path)] == ["1.0", ""]


def test_a_tracker_that_fails_says_so_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    def broken(run):
        def fail(*_):
            raise OSError("No space left on device")

        return tracking.Tracker(*[fail] * 5)

    def absent(run):
        raise RuntimeError("network down")

    monkeypatch.setattr(trackers, "TRACKERS", {"broken": broken, "absent": absent})
    writer = metrics.open_writer(tmp_path, names=("broken", "absent"))
    for step in (1, 2):
        writer.row(step, {"loss": 1.0})
        writer.images(step, "samples", np.zeros((4, 2, 2, 1), np.uint8))
    writer.sync(), writer.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "RuntimeError: network down" in said[0]
    assert "broken: OSError: No space left on device; training continues" in said[1]
    assert [row["step"] for row in metrics.read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_training_does_not_wait_for_a_tracker_in_a_thread(monkeypatch, capsys):
    monkeypatch.setattr(tracking, "WAITING", 2)
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    go, seen = threading.Event(), []

    def open_slowly():
        go.wait()
        nothing = [lambda *_: None] * 4
        return tracking.Tracker(lambda step, values: seen.append(step), *nothing)

    slow = tracking.in_thread("slow", open_slowly)
    for step in range(5):
        slow.scalars(step, {})
    slow.close()  # it gives up: the thread still opens
    said = capsys.readouterr().err
    assert said.count("too slow") == 1 and said.count("takes too long") == 1 and not seen
    go.set()
    monkeypatch.setattr(tracking, "PATIENCE", 60.0)
    slow.close()
    assert seen == [0, 1]


# ---- Weights & Biases
class Stub(types.ModuleType):
    """What of the package is used, by the same names; `runs` is what arrived."""

    def __init__(self, login):
        super().__init__("wandb")
        self.runs, self._login = [], login

    def login(self, *, prompt, verify):
        assert not prompt and not verify
        return self._login

    def Settings(self, **how):  # noqa: N802
        return how

    def Image(self, pixels):  # noqa: N802
        return pixels.shape

    def init(self, **how):
        rows = []
        self.runs.append((how, rows))
        return types.SimpleNamespace(
            offline=True,
            log=lambda values, step: rows.append((step, values)),
            finish=lambda: rows.append("finished"),
        )


@pytest.fixture
def wandb(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    stub = Stub(login=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_a_resumed_run_continues_the_same_run_of_wandb(wandb, tmp_path, capsys):
    for start in (0, 10):
        writer = metrics.open_writer(
            tmp_path, start_step=start, names=("wandb",), config={"seed": 3, "mesh": {"data": -1}}
        )
        writer.row(start + 10, {"loss": 0.5, "loss_by_level": None}, {"seconds": 1.0})
        writer.images(start + 10, "samples", np.zeros((6, 4, 4, 1), np.uint8))
        writer.text(start, "config", "shown as the config instead")
        writer.close()
    (first, rows), (second, _) = wandb.runs
    assert first["id"] == second["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert first["resume"] == "allow" and first["config"] == {"seed": 3, "mesh": {"data": -1}}
    assert first["project"] == "diffusion_jax" and first["name"] == tmp_path.name
    grid = (2 * 4 + 2, 3 * 4 + 2 * 2, 3)
    assert rows == [(10, {"loss": 0.5, "seconds": 1.0}), (10, {"samples": grid}), "finished"]
    assert first["mode"] == "offline" and "no login to wandb" in capsys.readouterr().err


def test_a_damaged_id_ends_nothing(wandb, tmp_path, capsys):
    (tmp_path / "wandb.json").write_text('{"id": "../elsewhere"}')
    metrics.open_writer(tmp_path, names=("wandb",)).close()
    assert not wandb.runs and "delete the file; training continues" in capsys.readouterr().err


def test_without_the_package_the_remedy_is_named_before_the_first_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    trackers.check_installed(("csv", "tensorboard"))
    with pytest.raises(UserError, match=r"pip install 'diffusion_jax\[wandb\]'"):
        trackers.check_installed(("csv", "wandb"))


def test_the_key_takes_names_and_refuses_others():
    assert config_schema.read("training.trackers", "tensorboard,csv") == ("tensorboard", "csv")
    assert config_schema.read("training.trackers", "()") == ()
    with pytest.raises(UserError, match="'tensorboard', 'csv', 'wandb'"):
        config_schema.read("training.trackers", "tensorbord")
    assert set(trackers.TRACKERS) == {"tensorboard", "csv", "wandb"}


@pytest.mark.long
def test_the_package_keeps_an_offline_run_that_resumes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 10):
        writer = metrics.open_writer(tmp_path, start_step=start, names=("wandb", "csv"))
        writer.row(start + 10, {"loss": 0.5}, {"seconds": 1.0})
        writer.images(start + 10, "samples", np.zeros((4, 8, 8, 1), np.uint8))
        writer.close()
        time.sleep(1.1)  # wandb names the folder of a run by the second in which it starts
    assert "warning" not in capsys.readouterr().err
    run = json.loads((tmp_path / "wandb.json").read_text())["id"]
    kept = list((tmp_path / "wandb").glob(f"offline-run-*-{run}"))
    assert len(kept) == 2 and all(list(each.glob(f"run-{run}.wandb")) for each in kept)
    assert len(list((tmp_path / "wandb").rglob("*.png"))) == 2
    assert len(table(tmp_path)) == 2
