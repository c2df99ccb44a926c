"""A run with labels, vectors and dense arrays ends the same however often it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffusion_jax.assembly import data_record, experiment
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.training import metrics
from tests.training.kill_battery import ROOT, digest

STEPS = 24
KILLED_AFTER = (1, 4)  # rows of the log that are new
CHANGES = {
    "data.condition": "condition",
    "data.batch_size": 4,
    "model.width": 8,
    "model.multipliers": "(1,)",
    "model.blocks": 1,
    "model.attention": "()",
    "label_dropout": 0.3,
    "optimizer.warmup": 2,
    "training.steps": STEPS,
    "training.log_every": 3,
    "training.checkpoint_every": 4,
    "training.eval_every": 12,
    "training.sample_every": 0,
}


def command(workdir, data, dense):
    changes = CHANGES | {"data.path": data, "data.dense": dense}
    line = [sys.executable, "-m", "experiments.train", "--config=configs/arrays.py:edm"]
    line += [f"--workdir={workdir}", *(f"--config.{key}={x}" for key, x in changes.items())]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.Popen(line, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)


def finish(*args):
    with command(*args) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors


def fingerprint(workdir):
    about = workdirs.about_data(workdir)
    model = experiment.assemble(
        workdirs.saved_config(workdir),
        tuple(about["image_shape"]),
        about["num_classes"],
        units=data_record.units(about),
    )
    assert model.units.vector and model.dense and model.num_classes == 2
    return digest(model, workdir, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("dense", ["inpaint", "array"])
def test_a_killed_run_with_conditions_ends_with_the_same_bits(dense, tmp_path):
    """Masks, dropped conditions and the order of all columns belong to the example and the step."""
    values = np.random.default_rng(0).standard_normal((40, 8, 1)).astype(np.float32)
    more = {"condition": values[:, :2, 0] + 1, "dense": 3 * values - 1}
    np.savez(tmp_path / "a.npz", data=values, labels=np.arange(40) % 2, **more)
    finish(tmp_path / "straight", tmp_path / "a.npz", dense)
    run = tmp_path / "killed"
    for rows in KILLED_AFTER:
        file = run / "metrics.jsonl"
        wanted = rows + (len(metrics.read_rows(file)) if file.exists() else 0)
        with command(run, tmp_path / "a.npz", dense) as process:
            while process.poll() is None and (
                not file.exists() or len(metrics.read_rows(file)) < wanted
            ):
                time.sleep(0.001)
            process.kill()
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
    finish(run, tmp_path / "a.npz", dense)
    one, other = map(fingerprint, (run, tmp_path / "straight"))
    assert one == other and len(one[0]) == 64
