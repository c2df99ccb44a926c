"""Several processes connect, by flags or by the variables of a cluster, and end together.

One is killed, all stop at a signal, and a run of one process resumes from their checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.assembly import config_files, train
from diffusion_jax.core.errors import UNFINISHED, UserError
from diffusion_jax.training import distributed, metrics, restoring
from tests.gloo import without_gloo

ROOT = Path(__file__).parents[2]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[01-02]", "SLURM_NTASKS": "2"}


SLURM |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


LOCAL = "SLURM_STEP_TASKS_PER_NODE"
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


# ---- who started us
@pytest.mark.parametrize(
    "environ, found",
    [
        ({}, None),
        (SLURM, "SLURM"),
        (
            SLURM | {"SLURM_NTASKS": "1"},
            None,
        ),  # srun -n1, an interactive shell, one task of an array
        (
            {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},
            None,
        ),  # the batch script itself, outside srun
        (
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "4"},
            "Open MPI",
        ),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_ML_PLATFORM": "JAX"}, "TPU"),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a notebook in a pod
    ],
)
def test_the_launcher_is_told_by_what_jax_reads(monkeypatch, environ, found):
    monkeypatch.setattr(
        distributed.runtime, "cpu_only", lambda environ: environ.get("JAX_PLATFORMS") == "cpu"
    )
    assert distributed.launcher(environ) == found


def test_an_indexed_kubernetes_job_needs_the_package_or_flags(monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install kubernetes"):
        distributed.launcher(POD)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    assert distributed.launcher(POD) == "Kubernetes"
    distributed.initialize(num_processes=1, environ=POD)  # alone, whatever the cluster says


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"coordinator": "localhost:1"},
            "--coordinator=localhost:1 alone does not start .* add --num_processes, --process_id",
        ),
        ({"num_processes": 2, "process_id": 0}, "add --coordinator"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "write HOST:PORT"),
        (
            {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2},
            "--process_id=2: the 2 .* are numbered 0 to 1",
        ),
        (
            {"environ": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}},
            "add --coordinator",
        ),  # Open MPI 5
    ],
)
def test_incomplete_flags_are_one_clear_line(given, message):
    with pytest.raises(UserError, match=message):
        distributed.initialize(**{"environ": {}} | given)


@pytest.mark.parametrize(
    "environ, devices",
    [
        ({}, None),
        ({"SLURM_LOCALID": "0", LOCAL: "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
        (
            {
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "2",
                LOCAL: "4(x2),2",
                "SLURM_GPUS_ON_NODE": "8",
            },
            [4, 5, 6, 7],
        ),
        ({"SLURM_LOCALID": "3", LOCAL: "8", "CUDA_VISIBLE_DEVICES": "3"}, [0]),  # --gpus-per-task=1
        ({"SLURM_LOCALID": "0", LOCAL: "2"}, None),  # no GPUs
        (
            {
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "CUDA_VISIBLE_DEVICES": "4,5",
            },
            [1],
        ),
    ],
)
def test_a_task_takes_its_share_of_the_gpus_that_it_sees(environ, devices):
    assert distributed.local_devices(environ) == devices


def test_a_coordinator_that_is_not_there_ends_the_main_in_time():
    began, port = time.monotonic(), free_port()
    line = [
        sys.executable,
        "-m",
        "experiments.train",
        "--config=configs/toy.py",
        "--workdir=/nowhere",
    ]
    line += [
        "--initialization_timeout=2",
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        "--process_id=1",
    ]
    done = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2 and time.monotonic() - began < 300
    where = f"127.0.0.1:{port}"
    line = f"error: process 1 did not meet the others at {where} within 2 s; .* port is open\n"
    assert re.fullmatch(line, done.stderr)


def test_a_process_reads_the_rows_it_is_told(tmp_path):
    source = data.load("digits", data_dir=str(tmp_path)).train
    whole = data.batches(source, batch_size=16, seed=3)
    rows = np.array([1, 2, 9, 14])
    for step in (0, 99):  # the second, across the end of an epoch
        part = data.batches(source, batch_size=16, seed=3, rows=rows)(step)
        assert all((part[key] == whole(step)[key][rows]).all() for key in ("image", "label"))


# ---- two processes, the real main
CONFIG = """
from configs import digits

def get_config():
    config = digits.get_config("vp")
    config.data.data_dir, config.data.batch_size = "{data_dir}", 16
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    config.optimizer.update(name="sgd", learning_rate=0.05, schedule="constant", warmup=0)
    config.optimizer.update(b1=None, b2=None, weight_decay=None)
    config.training.update(steps=100_000, log_every=5, eval_every=10, sample_every=10)
    config.training.checkpoint_every = 5
    config.sampler.nfe = 2
    return config
"""


def environment(**more):
    return os.environ | {"JAX_PLATFORMS": "cpu"} | more


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder, *args, **environ):
    line = [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={folder / 'config.py'}",
        f"--workdir={folder / 'run'}",
        *args,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=environment(**environ), **pipes)


def until(condition, processes, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), [
            process.communicate() for process in processes
        ]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(processes):
    """[(status, stderr without gloo's own lines)]"""
    said = [process.communicate(timeout=600) for process in processes]
    plain = [without_gloo(err) for _, err in said]
    return list(zip([process.returncode for process in processes], plain, strict=True))


def rows(folder):
    return [
        {k: v for k, v in row.items() if k != "timing"}
        for row in metrics.read_rows(folder / "metrics.jsonl")
    ]


@pytest.mark.long
def test_killed_resumed_stopped_and_finished_by_one_process(tmp_path):
    """What they wrote is what one process writes that was never interrupted.

    Two processes, by SLURM's variables, of which one is killed; two by flags, of which one gets
    SIGTERM; one, to the end.
    """
    run, slow = tmp_path / "run", "--heartbeat_timeout=30"
    (tmp_path / "config.py").write_text(CONFIG.format(data_dir=tmp_path / "data"))
    slurm = SLURM | {"SLURM_STEP_NODELIST": "127.0.0.1", "JAX_COORDINATOR_PORT": str(free_port())}
    pair = [
        start(tmp_path, slow, **slurm | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)})
        for index in range(2)
    ]
    until(lambda: (restoring.latest_step(run / "checkpoints") or 0) >= 10, pair)
    pair[1].kill()
    status, said = ended(pair)[0]  # it does not wait forever for the other
    assert (
        "lost another one" in said
        and status == UNFINISHED
        or "another task died" in said
        and status == -signal.SIGABRT
    )

    began = restoring.latest_step(run / "checkpoints")
    flags = [slow, f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    pair = [start(tmp_path, *flags, f"--process_id={index}") for index in range(2)]
    until(lambda: restoring.latest_step(run / "checkpoints") > began, pair)
    pair[1].send_signal(signal.SIGTERM)
    (first, said), (second, other) = ended(pair)
    assert first == second == UNFINISHED
    stopped = int(re.search(r"SIGTERM: saved at step (\d+)", said)[1])
    assert f"resuming at step {began}" in said and stopped == restoring.latest_step(
        run / "checkpoints"
    )
    assert other == ""  # the first process speaks for all

    config = config_files.load_config(str(tmp_path / "config.py")).unlock()
    config.training.steps = 5 * (stopped // 5 + 1)
    assert train.train(config.lock(), str(run)) and train.train(config, str(tmp_path / "straight"))
    ours, theirs = rows(run), rows(tmp_path / "straight")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(
                *(np.array(row[key], float) for row in (one, other)),
                rtol=2e-4,
                atol=1e-5,
                err_msg=key,
            )
    assert {p.name for p in (run / "samples").iterdir()} == {
        p.name for p in (tmp_path / "straight" / "samples").iterdir()
    }
    assert (
        json.loads((run / "config.json").read_text())["training"]["steps"] == config.training.steps
    )
