"""Other processes beside an accelerator: runs that are killed, and workers that read data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.training import metrics, restoring, verification
from tests.accelerator.mode import TINY, pick

ROOT = Path(__file__).parents[2]
STEPS, EVERY = pick((1000, 100), (8, 2))  # on an accelerator a step takes milliseconds
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CHANGES = {
    "data.batch_size": pick(64, 8),
    "model.width": pick(64, 8),
    "model.head_width": pick(64, 8),
    "model.multipliers": pick((1, 2), (1,)),
    "model.attention": pick("(4,)", "()"),
    "training.steps": STEPS,
    "training.log_every": EVERY,
    "training.checkpoint_every": EVERY,
    "training.eval_every": STEPS,
    "training.sample_every": 0,
    "training.keep_every": EVERY,
}


def start(workdir: Path) -> subprocess.Popen:
    """The command, in a process of its own, on the accelerator where there is one."""
    command = [sys.executable, "-m", "experiments.train", "--config=configs/digits.py:vp"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in CHANGES.items()]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "GIT_OPTIONAL_LOCKS": "0"}
    environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if TINY:
        environ["JAX_PLATFORMS"] = "cpu"
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)


def saved(workdir: Path) -> tuple[dict, list]:
    """The sha256 of every leaf of the last state, and the rows of metrics without their timing."""
    leaves = verification.read_body(workdir / "checkpoints" / str(STEPS))["leaves"]
    rows = metrics.read_rows(workdir / "metrics.jsonl")
    return leaves, [{k: v for k, v in row.items() if k != "timing"} for row in rows]


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    """With the flag that docs/reliability.md names for GPUs: without it XLA adds the gradients of
    a class embedding in any order, and chooses kernels by timing them.
    """
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start(killed)
    try:
        while (
            process.poll() is None and (restoring.latest_step(killed / "checkpoints") or 0) < EVERY
        ):
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, killed.with_suffix(".log").read_text()[-2000:]
    assert EVERY <= restoring.latest_step(killed / "checkpoints") < STEPS
    for workdir in (killed, straight):
        assert start(workdir).wait() == 0, workdir.with_suffix(".log").read_text()[-2000:]
    assert saved(killed) == saved(straight)


def traced_batch(step: int) -> dict[str, np.ndarray]:
    """A batch, with the process that made it and the devices of a GPU that it has open.

    A context opens some. That libcuda.so is mapped says nothing: importing JAX maps it.
    """
    opened = [os.readlink(f"/proc/self/fd/{n}") for n in opened_numbers()]
    drivers = sum(name.startswith("/dev/nvidia") for name in opened)
    facts = np.asarray([os.getpid(), drivers])
    return {"image": np.random.default_rng(step).standard_normal(4), "facts": facts}


def opened_numbers() -> list[str]:
    """The open file descriptors, without that of the listing itself."""
    return [n for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_data_workers_never_touch_the_accelerator():
    """Workers are spawned beside a process that uses the device, and have no context of it."""
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    for step, batch in data.prefetch(traced_batch, 0, pick(12, 4), workers=2, put=jax.device_put):
        process, drivers = np.asarray(batch["facts"])
        assert process != os.getpid()
        assert not drivers
        expected = np.random.default_rng(step).standard_normal(4).astype(np.float32)
        np.testing.assert_allclose(batch["image"], expected, rtol=1e-6)
    here = traced_batch(0)["facts"]
    assert (
        TINY or jax.default_backend() != "gpu" or here[1] > 0
    )  # the control: this process has one
