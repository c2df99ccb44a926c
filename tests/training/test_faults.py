"""The fault battery: processes that end, and files that change under a run.

Each is reported in one clear line, and running the same command again ends with the same bits. A
tiny run (points, an MLP) is trained by the real command, in this process where the fault allows
it. tests/training/kill_battery.py kills for longer.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from diffusion_jax.assembly import train, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import metrics, restoring, verification
from tests.training.tiny_run import (
    STEPS,
    child,
    config,
    ends_the_same,
)


def test_killed_in_a_save_refused_beside_another_terminated_and_resumed(undisturbed, tmp_path):
    root = tmp_path / "run"
    with child(root) as process:
        while process.poll() is None and not list(
            (root / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        ):
            time.sleep(0.001)
        with pytest.raises(
            UserError,
            match=f"in use by process {process.pid} on .*; wait for it, stop it, or use another",
        ):
            train.train(config(), str(root))
        process.kill()  # most often still in that save
        assert process.wait() == -signal.SIGKILL
    before = metrics.read_rows(root / "metrics.jsonl")
    with child(root) as process:
        while process.poll() is None and all(
            row in before for row in metrics.read_rows(root / "metrics.jsonl")
        ):
            time.sleep(0.001)
        process.terminate()
        _, errors = process.communicate()
        assert (
            process.returncode in (0, 75) and "Traceback" not in errors
        )  # 0: it had reached the end
    assert ends_the_same(root, undisturbed)


def test_a_data_worker_that_dies(undisturbed, tmp_path, at):
    at(
        13,
        lambda: [
            os.kill(worker.pid, signal.SIGKILL) for worker in multiprocessing.active_children()
        ],
    )
    with pytest.raises(UserError, match="a data worker died .*the same command"):
        train.train(config(data__workers=1), str(tmp_path / "run"))
    assert ends_the_same(tmp_path / "run", undisturbed)


def test_checkpoints_that_rotate_while_they_are_read(undisturbed, tmp_path, monkeypatch, capfd):
    """The newest one is removed between the listing and the reading, as by a run with
    training.keep=1.
    """
    root = tmp_path / "checkpoints"
    shutil.copytree(undisturbed[0] / "checkpoints", root)
    read, newer = verification.read_body, root / "28"

    def rotated(folder):
        if not newer.exists():
            shutil.copytree(folder, newer)
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(verification, "read_body", rotated)
    assert restoring.restore_params(root).step == 28
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage, warning",
    [
        (lambda lines: [*lines[:3], '{"step": 1', *lines[3:]], "1 damaged line left out"),
        (lambda lines: [*lines[:3], "[]", "\0\0", *lines[5:]], "2 damaged lines left out"),
        (lambda lines: lines[:2], "no rows between step 6 and step 24"),
        (lambda lines: [], "no rows between step 0 and step 24"),
        (lambda lines: [*lines, '{"step": 27, "lo'], None),  # what a killed run leaves
    ],
)
def test_lost_rows_are_reported(undisturbed, tmp_path, capfd, damage, warning):
    path = tmp_path / "metrics.jsonl"
    lines = (undisturbed[0] / "metrics.jsonl").read_text().splitlines()
    path.write_text("\n".join(damage(lines)))
    metrics.cut(path, STEPS, log_every=3)
    errors = capfd.readouterr().err
    assert (warning in errors and errors.count("\n") == 1) if warning else not errors
    whole = [line for line in lines if line in damage(lines)]
    assert path.read_text().splitlines() == whole


def handles_sigterm(process):
    """Whether the process has installed a handler of SIGTERM, as the kernel says."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*([0-9a-f]+)", status)[1], 16)
    return caught >> (signal.SIGTERM - 1) & 1


def test_a_command_that_is_stopped_while_it_prepares(tmp_path):
    """SIGTERM as soon as the command has begun: one line, and status 75."""
    with child(tmp_path / "run") as process:
        while process.poll() is None and not handles_sigterm(process):
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and "Traceback" not in errors and "SIGTERM: " in errors


def test_the_best_checkpoint_and_those_kept_for_good(tmp_path):
    root = tmp_path / "run"
    chosen = config(
        training__best="eval_loss", training__eval_every=3, training__keep=1, training__keep_every=8
    )
    assert train.train(chosen, str(root))
    losses = {
        row["step"]: row["eval_loss"]
        for row in metrics.read_rows(root / "metrics.jsonl")
        if "eval_loss" in row
    }
    best = min(losses, key=losses.get)
    assert len(losses) == 8 and sorted(int(p.name) for p in (root / "checkpoints").iterdir()) == [
        8,
        16,
        24,
    ]
    assert [p.name for p in (root / "checkpoints_best").iterdir()] == [str(best)]
    sampling = chosen.copy_and_resolve_references()
    sampling.sampler.checkpoint = "best"
    assert workdir.load(root, sampling).step == best and workdir.load(root, chosen).step == STEPS
    shutil.rmtree(root / "checkpoints_best")
    with pytest.raises(
        UserError, match="has no best checkpoint; train with --config.training.best=eval_loss"
    ):
        workdir.load(root, sampling)
    with pytest.raises(
        UserError,
        match="unknown value of config.training.best 'eval_los'; did you mean 'eval_loss'",
    ):
        train.train(config(training__best="eval_los"), str(tmp_path / "mistyped"))
