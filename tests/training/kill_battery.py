"""Kill a run with SIGKILL, again and again, and compare bits.

    python -m tests.training.kill_battery --kills=50 --workdir=/tmp/battery

A tiny run of the real command (points, an MLP) saves every fourth step, so that it spends much of
its time in saves.

1. So many trials: a run is killed once, at its start (imports, compilation), between two rows, or
   in the middle of a save, and then resumed to its end.
2. One longer run is killed so many times, each time after it proceeded by a save at least.

Each must end as the run that nobody killed: the sha256 over every leaf (parameters, EMAs,
optimizer, key) and every row of metrics.jsonl but its timing. It takes minutes, and pytest does not
collect it. The exit status is 1 if any run differs.

With --bucket the workdirs are in an object store that is a folder (tests/buckets), every run begins
on one of two hosts (local folders that know nothing of each other), and "saving" means that the
kill left a checkpoint of which the store has only a part.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.assembly import config_files, experiment, trainer
from diffusion_jax.core import mirrors
from diffusion_jax.training import metrics, restoring

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/toy.py:vp"

CHANGES = {
    "data.batch_size": 64,
    "model.width": 32,
    "model.blocks": 1,
    "optimizer.warmup": 5,
    "training.log_every": 3,
    "training.checkpoint_every": 4,
    "training.eval_every": 30,
    "training.sample_every": 0,
}

MOMENTS = ("start", "rows", "save")
STORES = ROOT / "tests" / "buckets"


def in_a_bucket(workdir: Path) -> None:
    """Let workdirs below this folder be objects of a store from now on."""
    os.environ["FAKEBUCKET_ROOT"] = str(workdir)
    os.environ["FAKEBUCKET_DELAY"] = "0.003"
    paths = [str(STORES), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def url(workdir: Path) -> str:
    """What --workdir names: the folder, or the objects that it stands for."""
    root = os.environ.get("FAKEBUCKET_ROOT")
    return f"fakebucket://{workdir.relative_to(root)}" if root else str(workdir)


def half_saved(folder: Path) -> bool:
    """Whether a checkpoint is there in part."""
    if "FAKEBUCKET_ROOT" not in os.environ:
        return any(folder.glob("*.orbax-checkpoint-tmp*"))
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        for step in folder.glob("[0-9]*"):
            parts = any(part.is_file() for part in step.rglob("*"))  # of one that is removed, too
            if parts and not (step / mirrors.COMMITTED).exists():
                return True
    return False


def command(workdir: Path, steps: int) -> list[str]:
    changes = CHANGES | {"training.steps": steps}
    return [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={CONFIG}",
        f"--workdir={url(workdir)}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def start(workdir: Path, steps: int) -> subprocess.Popen:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    host = workdir.parent / f".host{random.randrange(2)}"
    return subprocess.Popen(
        command(workdir, steps),
        cwd=ROOT,
        env=os.environ | {"DIFFUSION_JAX_BUCKETS": str(host)},
        stderr=(workdir.parent / "stderr.txt").open("a"),
    )


def finish(workdir: Path, steps: int) -> None:
    if start(workdir, steps).wait():
        sys.exit(f"the run failed:\n{(workdir.parent / 'stderr.txt').read_text()[-2000:]}")


def fingerprint(workdir: Path, steps: int) -> tuple[str, list]:
    """(sha256 over every leaf of the final state, the rows without their timing)."""
    config = (
        config_files.load_config(str(ROOT / "configs/toy.py") + ":vp")
        .copy_and_resolve_references()
        .unlock()
    )
    config.update_from_flattened_dict(CHANGES | {"training.steps": steps})
    return digest(experiment.assemble(config, (2,)), workdir, steps)


def digest(model: experiment.Experiment, workdir: Path, steps: int) -> tuple[str, list]:
    """The fingerprint of the run of a model."""
    parts = trainer.training(model)
    restored = restoring.restore(
        workdir / "checkpoints", parts.runner.template(parts.init, jax.random.key(0))
    )
    if restored is None or restored.step != steps:
        return f"at step {restored and restored.step}", []
    found = hashlib.sha256()
    state = restored.state._replace(key=jax.random.key_data(restored.state.key))
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        found.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    rows = metrics.read_rows(workdir / "metrics.jsonl")
    return found.hexdigest(), [
        {key: value for key, value in row.items() if key != "timing"} for row in rows
    ]


def kill_at(
    process: subprocess.Popen, workdir: Path, moment: str, rows: int, chance: random.Random
) -> str:
    """Kill at that moment; returns what it was doing: 'starting', 'training', 'saving' (a save is
    left half-done) or 'done'.
    """
    folder, path = workdir / "checkpoints", workdir / "metrics.jsonl"
    if moment == "start":
        time.sleep(chance.uniform(0, 6))
    while process.poll() is None and moment != "start":
        if moment == "rows" and len(metrics.read_rows(path)) >= rows:
            time.sleep(chance.uniform(0, 0.1))
            break
        if moment == "save" and len(metrics.read_rows(path)) >= rows and half_saved(folder):
            break
        time.sleep(0.001)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        return "done"
    return "saving" if half_saved(folder) else "training" if path.exists() else "starting"


def trials(
    kills: int, workdir: Path, steps: int, expected, chance: random.Random
) -> tuple[int, Counter]:
    good, moments, began = 0, Counter(), time.monotonic()
    for i in range(kills):
        run = workdir / f"trial_{i}" / "run"
        process = start(run, steps)
        moments[
            kill_at(
                process, run, MOMENTS[i % len(MOMENTS)], chance.randrange(1, steps // 3), chance
            )
        ] += 1
        finish(run, steps)
        same = fingerprint(run, steps) == expected
        good += same
        left = (time.monotonic() - began) / (i + 1) * (kills - i - 1)
        verdict = "the same" if same else f"DIFFERENT, kept in {run}"
        print(f"trial {i + 1}/{kills}: {verdict}; {left:.0f} s left", flush=True)
        if same:
            shutil.rmtree(run.parent)
    return good, moments


def long_run(kills: int, workdir: Path, steps: int, chance: random.Random) -> Counter:
    run, moments = workdir / "long" / "run", Counter()
    for i in range(kills):
        process, before = start(run, steps), restoring.latest_step(run / "checkpoints") or 0
        while (
            process.poll() is None
            and (restoring.latest_step(run / "checkpoints") or 0) < before + 2
        ):
            time.sleep(0.002)
        moment = chance.choice(("rows", "save"))
        moments[kill_at(process, run, moment, 0, chance)] += 1
        print(
            f"kill {i + 1}/{kills}: step {restoring.latest_step(run / 'checkpoints')} of {steps}",
            flush=True,
        )
    finish(run, steps)
    return moments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, default=60, help="of a trial; the long run has eight for each kill"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--bucket", action="store_true", help="workdirs in an object store")
    flags = parser.parse_args()
    chance, workdir = random.Random(flags.seed), flags.workdir.absolute()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "compiled"))
    os.environ["GIT_OPTIONAL_LOCKS"] = (
        "0"  # provenance asks git, which must not be killed while it writes this repository's index
    )
    if workdir.exists():
        sys.exit(f"{workdir} exists; give a new folder")
    if flags.bucket:
        in_a_bucket(workdir)

    finish(workdir / "straight" / "run", flags.steps)
    good, moments = trials(
        flags.kills,
        workdir,
        flags.steps,
        fingerprint(workdir / "straight" / "run", flags.steps),
        chance,
    )
    print(
        f"{good} of {flags.kills} trials ended bit-identical; killed while {dict(moments)}",
        flush=True,
    )

    steps = 8 * flags.kills // 6 * 6
    finish(workdir / "straight_long" / "run", steps)
    moments = long_run(flags.kills, workdir, steps, chance)
    same = fingerprint(workdir / "long" / "run", steps) == fingerprint(
        workdir / "straight_long" / "run", steps
    )
    ended = "bit-identical" if same else "DIFFERENT"
    print(f"one run of {steps} steps killed {moments.total()} times ({dict(moments)}): {ended}")
    return 0 if same and good == flags.kills else 1


if __name__ == "__main__":
    sys.exit(main())
