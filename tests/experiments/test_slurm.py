"""A real one-node SLURM cluster, with DIFFUSION_JAX_SLURM=1 (Debian: slurm-wlm, munge)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax.core import files
from diffusion_jax.training import metrics, restoring
from tests.experiments.launch_files import LAUNCH, ROOT, wait

TINY = {
    "model.width": 8,
    "model.multipliers": "(1,)",
    "model.attention": "()",
    "model.head_width": 8,
    "data.batch_size": 16,
    "training.steps": 200,
    "training.log_every": 10,
    "training.checkpoint_every": 10,
    "training.eval_every": 0,
    "training.sample_every": 0,
}


def missing():
    if os.environ.get("DIFFUSION_JAX_SLURM") != "1":
        return "starts a SLURM cluster: set DIFFUSION_JAX_SLURM=1"
    absent = [
        name
        for name in ("sbatch", "srun", "slurmctld", "slurmd", "munged")
        if not shutil.which(name)
    ]
    return f"SLURM is not installed: no {', '.join(absent)}" if absent else ""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """munged, slurmctld and slurmd of this machine alone, in a scratch folder; yields a function
    that runs their commands.
    """
    if missing():
        pytest.skip(missing())
    at = tmp_path_factory.mktemp("slurm")
    at.chmod(0o755)
    for folder in ("state", "spool"):
        (at / folder).mkdir()
    (at / "key").write_bytes(os.urandom(1024))
    (at / "key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    (at / "slurm.conf").write_text(f"""
ClusterName=scratch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={at}/munge,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes={host} Default=YES
""")
    monkeypatch.setenv("SLURM_CONF", str(at / "slurm.conf"))

    def run(*command):
        return subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        files = {"key": "key", "pid": "munged.pid", "log": "munged.log", "seed": "seed"}
        files = [f"--{name}-file={at}/{file}" for name, file in files.items()]
        run("munged", "--force", f"--socket={at}/munge", *files)
        run("slurmctld", "-f", at / "slurm.conf")
        run("slurmd", "-f", at / "slurm.conf", "-N", host)
        wait(lambda: run("sinfo", "-h", "-o", "%T") == "idle", 30, "the node")
        yield run
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            if (at / f"{name}.pid").exists():
                os.kill(int((at / f"{name}.pid").read_text()), signal.SIGTERM)


def submitted(slurm, workdir, options):
    venv = Path(sys.executable).parent.parent
    return slurm(
        "sbatch",
        "--parsable",
        "--ntasks-per-node=2",
        f"--output={workdir}.out",
        f"--export=ALL,VENV={venv}",
        LAUNCH / "slurm.sbatch",
        "--config=configs/digits.py:flow",
        f"--workdir={workdir}",
        *[f"--config.{key}={to}" for key, to in options.items()],
    )


def test_slurm_trains_with_two_tasks_and_a_canceled_or_requeued_job_resumes(slurm, tmp_path):
    """Stopped by scancel, submitted again, requeued in the middle: the rows are those of the job
    that was left alone.
    """

    def submit(workdir):
        return submitted(slurm, workdir, TINY | {"data.data_dir": tmp_path / "data"})

    def state(number):
        return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", number))[1]

    def rows(workdir):
        return [
            {k: v for k, v in row.items() if k != "timing"}
            for row in metrics.read_rows(workdir / "metrics.jsonl")
        ]

    def reaches(workdir, step):
        path = workdir / "metrics.jsonl"

        def there():
            return path.exists() and f'"step": {step},' in path.read_text()

        wait(there, 300, f"step {step} in {workdir}.out")

    def ends(number, workdir):
        unfinished = ("RUNNING", "PENDING", "COMPLETING")
        wait(lambda: state(number) not in unfinished, 600, f"job {number}")
        assert state(number) == "COMPLETED", Path(f"{workdir}.out").read_text()

    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    ends(submit(alone), alone)
    assert "2 device(s); starting" in Path(f"{alone}.out").read_text()
    assert files.load_json(alone / "provenance.json")["devices"]["processes"] == 2
    # one file, one row per step: the first task writes
    assert [row["step"] for row in rows(alone)] == list(range(10, 201, 10))

    first = submit(stopped)
    reaches(stopped, 20)
    slurm("scancel", first)
    wait(lambda: state(first) == "CANCELLED", 60, "scancel")
    saved = restoring.latest_step(stopped / "checkpoints")
    assert 20 <= saved < 200
    second = submit(stopped)
    reaches(stopped, saved // 10 * 10 + 30)
    slurm("scontrol", "requeue", second)
    ends(second, stopped)
    output = Path(f"{stopped}.out").read_text()
    assert output.count("resuming at step") == 2 and f"resuming at step {saved}" in output
    assert "Restarts=1" in slurm("scontrol", "show", "job", second)
    assert rows(stopped) == rows(alone)
