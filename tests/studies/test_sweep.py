"""The command sweep on a tiny trained model: its files, its jobs for SLURM, its mistakes."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from diffusion_jax.assembly import workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import pareto
from diffusion_jax.studies.sweep import cells, guidance_sweep, page, search
from diffusion_jax.studies.sweep import command as sweep
from diffusion_jax.studies.sweep import runs as sweep_runs
from diffusion_jax.studies.sweep import space as sweep_space
from diffusion_jax.studies.sweep import task as sweep_task
from tests.experiments.launch_files import LAUNCH, bash, calls, stub
from tests.spoiled import spoiled

FIXTURES = Path(__file__).parents[1] / "fixtures"
OVER = ["sampler.guidance=[1, 2]", "sampler.nfe=[3, 5]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of the digits with width 8, and the workdir of points."""
    root = tmp_path_factory.mktemp("workdirs")
    with tarfile.open(FIXTURES / "workdirs.tar.gz") as archive:
        archive.extractall(root, filter="data")
    return root


def run(root, launch="local", submit=False, job="", workdirs=True, **flags):
    """The command, as its main calls it."""
    config = workdir.saved_config(root / "digits")
    given = {
        "workdir": str(root / "digits") if workdirs else None,
        "config_file": None,
        "over": OVER,
        "search": "halving()",
        "for_each": "",
        "num": 20,
        "metric": "frechet",
        "metrics": "",
        "features": "",
        "reference": "",
        "out": "",
    }
    sweep.sweep(config, launch=launch, submit=submit, job=job, **given | flags)


def test_the_jobs_of_a_sweep_and_then_its_files(trained, monkeypatch, capsys, tmp_path):
    """Jobs in order measure what the command measures by itself; it then only collects."""
    monkeypatch.setattr(search, "LEAST", 10)
    out = trained / "digits" / "sweep"
    run(trained, launch="slurm")
    lines = (out / "jobs.txt").read_text().splitlines()
    jobs = [re.search(r"--job=(\S+)", line) for line in lines]
    names = [found[1] if found else "" for found in jobs]
    rungs = [f"measure:0:{i}" for i in range(4)] + ["measure:1:0", "measure:1:1"]
    assert names == [*rungs, ""]  # two groups of two cells, of which one goes on
    words = shlex.split(lines[0])
    assert words[:3] == ["python", "-m", "experiments.sweep"] and f"--over={OVER[0]}" in words
    with pytest.raises(UserError, match="rung 0 is not complete; run its jobs first"):
        run(trained, job="measure:1:0")
    for job in names[:-1]:
        run(trained, job=job)
    with pytest.raises(UserError, match="there is no such job"):
        run(trained, job="measure:2:0")
    monkeypatch.setattr(cells.CellSampler, "plan", lambda *args: 1 / 0)  # nothing is drawn
    capsys.readouterr()
    run(trained, asked=frozenset({"sampler.clip", "data.path"}))
    said = capsys.readouterr()
    assert "4 cells of 4, at most 20 images each: 60 images, 75 % of 80" in said.err
    found = json.loads((out / "sweep.json").read_text())
    rows = found["rows"]
    assert [row["images"] for row in rows].count(20) == 2
    assert {row["standing"] for row in rows} <= {"best", "not distinguishable", "worse", "dropped"}
    best = rows[found["best"]]
    assert best["frechet"] == min(row["frechet"] for row in rows if row["images"] == 20)
    assert best["interval"] > 0 and best["evaluations"] == best["sampler.nfe"]
    assert best["intervals"].keys() == {"accuracy", "frechet"}
    assert "accuracy_interval" in (out / "sweep.csv").read_text().splitlines()[0]
    assert "Fréchet distance of pixels" in said.out and "Fréchet distance |" not in said.out
    settings = f"--config.sampler.guidance={best['sampler.guidance']} --config.sampler.nfe="
    assert len(found["pasted"]) == 3 and settings in said.out
    assert f"sample --workdir={trained / 'digits'}" in said.out
    assert " --config.sampler.clip=" in said.out and "--config.data" not in said.out
    assert len((out / "sweep.csv").read_text().splitlines()) == 5
    assert "Quality against cost" in (out / "sweep.html").read_text()
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > 600
    assert len(list((out / "cells").glob("*.npz"))) == 4 and not list((out / "cells").glob("*/"))


def test_an_adaptive_sampler_is_measured_once_whatever_the_budget(trained, tmp_path):
    config = workdir.saved_config(trained / "digits")
    over = ["sampler.nfe=[3, 5]", "sampler.name=[ddim, tsit5]"]
    space, folder = sweep_space.parse(config, over), trained / "digits"
    task = sweep_task.make(config, folder, space, tmp_path, 20, "grid()", ["sampler.nfe"])
    assert task.plan.groups == {(3,): [0, 1], (5,): [2]} and task.plan.images == 60
    assert [cell.sampling.name for cell in task.cells.values()].count("adaptive.tsit5") == 1


def test_a_guide_that_is_named_twice_is_measured_once(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(guidance_sweep, "sweep_model", lambda *args: seen.extend(args[2]) or "")
    flags = {"workdir": str(tmp_path), "scales": "1", "num": 10}
    guidance_sweep.guidance_sweep(None, guides="cfg(); CFG(); cfg(rescale=0.7)", **flags)
    assert seen == ["cfg()", "cfg(rescale=0.7)"]
    assert f"--workdir={tmp_path} --guidance=SCALE" in capsys.readouterr().out


def test_a_damaged_cell_is_measured_again(trained, tmp_path, capsys):
    path = tmp_path / "a.npz"
    kept = cells.CellScores(20, {"frechet": 1.0}, {"frechet": 0.1}, (1.0,) * 5, 2.0, 0.1)
    cells._save(path, [kept])
    (again,) = cells._read(path)
    assert again._replace(shown=kept.shown) == kept
    for _ in spoiled(path):
        assert cells.store.load(path, cells._read) is None
        assert "made again" in capsys.readouterr().err


def test_submit_sends_each_stage_after_the_one_before(trained, tmp_path, monkeypatch, capsys):
    """With stubs of sbatch and srun: arrays with their dependencies, and the line of a job."""
    bin = tmp_path / "bin"
    stub(bin, "sbatch", "echo 77")
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    run(trained, launch="slurm", submit=True, out=str(tmp_path / "out"))
    assert "rung0: array 77, jobs: 4" in capsys.readouterr().out
    first, last = calls(bin, "sbatch")
    jobs = str(tmp_path / "out" / "jobs.txt")
    assert first[:3] == ["--parsable", "--job-name=sweep-rung0", "--array=0-3"]
    assert first[-3:] == ["experiments/launch/sweep.sbatch", jobs, "1"]
    assert "--dependency=afterok:77" in last and last[-1] == "5"
    stub(bin, "srun")
    python = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7"}
    bash(LAUNCH / "sweep.sbatch", jobs, "1", path=bin, cwd=tmp_path, **python)
    (call,) = calls(bin, "srun")
    assert call[-1].startswith("exec python -m experiments.sweep") and call[-1].endswith(":0:1")
    python["SLURM_ARRAY_TASK_ID"] = "9"
    bash(LAUNCH / "sweep.sbatch", jobs, "1", path=bin, cwd=tmp_path, expect=2, **python)
    stub(bin, "sbatch", "echo no partition >&2; exit 1")
    with pytest.raises(UserError, match="--submit: no partition"):
        run(trained, launch="slurm", submit=True, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="add --launch=slurm"):
        run(trained, submit=True)


def test_a_job_of_an_array_that_saved_is_queued_again_and_no_other(tmp_path):
    """A task of status 75 is requeued by its own number, except after scancel; others are not."""
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("python -m experiments.sweep --job=train:0\npython -m a\n")
    for number, (status, cancelled) in enumerate(((75, ""), (75, "kill -TERM $PPID; "), (1, ""))):
        bin = tmp_path / str(number)
        stub(bin, "srun", f"{cancelled}exit {status}")
        stub(bin, "scontrol")
        task = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "78"}
        bash(LAUNCH / "sweep.sbatch", jobs, "1", path=bin, cwd=tmp_path, expect=status, **task)
        assert calls(bin, "scontrol") == ([["requeue", "78"]] if number == 0 else [])


MISTAKES = {
    "config.sampler.ema": {"over": ["sampler.ema=[nosuch]"]},
    "there are no snapshots in": {"over": ["sampler.ema=['post_hoc(0.1)', params]"]},
    "at most 0.28": {"over": ["sampler.ema=['post_hoc(0.5)']"]},
    "unknown grid 'karas'; did you mean 'karras'": {"over": ["sampler.grid=[karas]"]},
    "config.sampler.checkpoint": {"over": ["sampler.checkpoint=['', bst]"]},
    "has no best checkpoint": {"over": ["sampler.checkpoint=[best]"]},
    "unknown search 'halvin'; did you mean 'halving'": {"search": "halvin()"},
    "unknown --for_each 'sampler.name'": {"for_each": "sampler.name"},
    "unknown --metric 'frechett'": {"metric": "frechett"},
    "There are: accuracy, c2st, class_accuracy, cmmd, copies": {"metric": "train_seconds"},
    "neither direction of it is better": {"metric": "nearest_ratio", "metrics": "memorization"},
    "--metrics is empty": {"metrics": ","},
    "--metric=recall is not measured; add prdc to --metrics=accuracy": {"metric": "recall"},
    "unknown features 'pixel'; did you mean 'pixels'": {"features": "pixel"},
    "there is no 'nosuch.npz'": {"reference": "nosuch.npz"},
    "the space has 1,000,000 cells": {
        "over": [*OVER[:1], "sampler.nfe=1:1000:1", "optimizer.clip=1:500:1"]
    },
    "--workdir is missing": {"workdir": None, "out": "nowhere"},
    "--out is missing": {"workdir": None},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line_before_anything_runs(said, trained):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        run(trained, **MISTAKES[said])
    assert "\n" not in str(error.value)


def test_a_workdir_without_a_checkpoint_is_refused(trained, tmp_path):
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_bytes((trained / "digits" / name).read_bytes())
    with pytest.raises(UserError, match="has no checkpoint; train the model first"):
        run(trained, workdir=str(tmp_path))


def test_paired_differences_and_the_front():
    """The paired difference separates two cells whose own intervals overlap."""
    noise = (-0.2, 0.1, 0.3, -0.1, -0.1)
    best, worse, other = (
        cells.CellScores(20, {"frechet": value}, left_out=tuple(value + n for n in moved))
        for value, moved in ((1.0, noise), (1.1, noise), (1.1, noise[::-1]))
    )
    assert page.distinguishable(best, worse, "frechet")
    assert not page.distinguishable(best, other, "frechet")
    assert pareto.front([5, 10, 10, 20, 50], [3.0, 2.0, 1.9, 2.5, 1.0]) == [0, 2, 4]
    assert pareto.front([1, 1], [2.0, 2.0]) == [0]


def test_training_goes_on_with_the_better_half_and_is_found_again(trained, tmp_path, monkeypatch):
    """Four runs in three rungs, with stand-ins for training and scoring: a run of a higher rung has
    passed the lower ones, and of the others the loss decides.
    """
    config = workdir.saved_config(trained / "digits")
    space = sweep_space.parse(config, ["optimizer.learning_rate=[1e-4, 1e-3, 1e-2, 0.1]"])
    task = sweep_task.make(config, None, space, tmp_path, 20, "grid()")
    steps, trainings = dict.fromkeys(task.runs, 0), []
    losses = dict(zip(task.runs, (3.0, 1.0, 2.0, float("inf"))))

    def train(config, folder, until=None, *, asked=()):
        steps[Path(folder)] = until or config.training.steps
        trainings.append((list(task.runs).index(Path(folder)), until))

    def measure(cell, images, *args):
        loss = losses[next(folder for folder in steps if folder.absolute() == cell.workdir)]
        return cells.CellScores(images, {"frechet": loss})

    monkeypatch.setattr(sweep_runs.training, "train", train)
    monkeypatch.setattr(sweep_runs.training, "train_until", train)
    monkeypatch.setattr(sweep_runs, "_step", steps.get)
    monkeypatch.setattr(cells, "measure", measure)
    judges = [None, cells.Scoring(None, "frechet", {}, {})]
    whole = config.training.steps
    found = sweep_runs.train_in_rungs(task, 3, lambda: judges)
    first = [(0, whole // 4), (1, whole // 4), (2, whole // 4), (3, whole // 4)]
    assert trainings == [*first, (1, whole // 2), (2, whole // 2), (1, None)]
    assert found.plan.groups == {(): [1]} and len(found.cells) == 4
    trainings.clear()
    losses[list(task.runs)[0]] = 0.0  # is not asked again: two others have gone on
    again = sweep_runs.train_in_rungs(task, 3, lambda: judges)
    assert trainings == [(1, None)] and again.plan == found.plan
    steps.update(dict.fromkeys(steps, whole))  # as by --training_rungs=1: none is dropped unseen
    trainings.clear()
    assert sweep_runs.train_in_rungs(task, 3, lambda: judges).plan.groups == {(): [0, 1, 2, 3]}
    assert trainings == [(number, None) for number in range(4)]
    with pytest.raises(UserError, match="--training_rungs=2: this sweep trains nothing"):
        run(trained, training_rungs=2)


@pytest.mark.long
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(trained, tmp_path):
    changed = {
        "workdir": None,
        "over": ["optimizer.learning_rate=[1e-3, 1e-2]"],
        "search": "grid()",
        "num": 10,
    }
    run(trained, training_rungs=2, out=str(tmp_path / "rungs"), **changed)
    run(trained, out=str(tmp_path / "straight"), **changed)
    halved, straight = (
        json.loads((tmp_path / name / "sweep.json").read_text())["rows"]
        for name in ("rungs", "straight")
    )
    whole = workdir.saved_config(trained / "digits").training.steps
    assert sorted(row["steps"] for row in halved) == [whole // 2, whole]
    (kept,) = (row for row in halved if row["steps"] == whole)
    (same,) = (row for row in straight if row["cell"] == kept["cell"])
    assert kept["frechet"] == same["frechet"]


@pytest.mark.long
def test_training_keys_are_runs_of_their_own(trained, tmp_path, capsys):
    """Two learning rates and two weights: two runs, four cells; again, nothing is trained."""
    changed = {
        "workdir": None,
        "out": str(tmp_path / "out"),
        "over": ["optimizer.learning_rate=[1e-3, 1e-2]", "sampler.ema=['', params]"],
        "search": "grid()",
        "num": 10,
    }
    run(trained, **changed)
    runs = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert len(runs) == 2 and all(name.startswith("learning_rate=0.0") for name in runs)
    said = capsys.readouterr()
    assert said.err.count("; starting") == 2 and "2 training runs, 4 cells of 4" in said.err
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert len(rows) == 4 and len({row["frechet"] for row in rows}) > 1
    assert {row["run"] for row in rows} == {f"runs/{name}" for name in runs}
    run(trained, **changed)
    assert capsys.readouterr().err.count("; resuming at step") == 2
