"""The launch files, and stubs of the clusters' programs that record what they are given."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


LAUNCH = ROOT / "experiments" / "launch"


GUIDE = ROOT / "docs" / "scaling.md"


SCRIPTS = ("slurm.sbatch", "tpu_pod.sh", "xpk.sh")


TRICKY = "--config.process=schedules.VP(beta_max=16.0)"  # a shell must not read it


POD = {
    "NAME": "n",
    "ZONE": "z",
    "TYPE": "v5litepod-256",
    "VERSION": "v",
    "REPO": "r",
}


GKE = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-256", "IMAGE": "i"}


def stub(folder, name, body="exit 0"):
    """A program that appends its arguments to folder/name.calls (ASCII's unit and record separators
    between) and runs body.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(
        f"#!/usr/bin/env bash\nprintf '%s\\x1f' \"$@\" $'\\x1e' >>'{path}.calls'\n{body}\n"
    )
    path.chmod(0o755)
    return path


def calls(folder, name):
    path = folder / f"{name}.calls"
    return (
        [call.split("\x1f")[:-1] for call in path.read_text().split("\x1e\x1f")[:-1]]
        if path.exists()
        else []
    )


def bash(*command, path, cwd, expect=0, **env):
    """Run a launch file with the stubs in `path` first on PATH."""
    env = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(cwd), **env}
    done = subprocess.run(
        ["bash", *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def example(file):
    """The arguments of experiments.train in a script's own example of its use."""
    lines = (LAUNCH / file).read_text().replace("\\\n#", "").splitlines()
    line = next(line for line in lines if line.startswith("#") and "--workdir=" in line)
    return [
        word
        for word in shlex.split(line.lstrip("# "), comments=True)
        if word.startswith(("--config", "--workdir"))
    ]


def typed(tmp_path):
    """What each launch file makes a machine type after `python`: {file: [argv]}."""
    bin, args = tmp_path / "bin", lambda file: [*example(file), TRICKY]
    python = tmp_path / ".venv" / "bin"
    for name in ("srun", "gcloud", "xpk", "mountpoint"):
        stub(bin, name)
    stub(python, "python")
    bash(LAUNCH / "slurm.sbatch", *args("slurm.sbatch"), path=bin, cwd=tmp_path, SLURM_JOB_ID="7")
    bash(LAUNCH / "tpu_pod.sh", "train", *args("tpu_pod.sh"), path=bin, cwd=tmp_path, **POD)
    bash(LAUNCH / "xpk.sh", *args("xpk.sh"), path=bin, cwd=tmp_path, **GKE)
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    node = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    bash("-c", task["run"], path=bin, cwd=tmp_path, **task["envs"], **node)
    container = job()["spec"]["template"]["spec"]["containers"][0]
    remote = value(calls(bin, "gcloud")[0], "command")
    return {
        "slurm.sbatch": after(calls(bin, "srun")[0], ".venv/bin/python"),
        "tpu_pod.sh": after(
            shlex.split(remote.split(">>")[0].replace("&&", " ")), ".venv/bin/python"
        ),
        "xpk.sh": after(shlex.split(value(calls(bin, "xpk")[0], "command")), "python"),
        "skypilot.yaml": calls(python, "python")[0],
        "kubernetes.yaml": [
            *container["command"][1:],
            *(arg.replace("$(PROCESS_ID)", "1") for arg in container["args"]),
        ],
    }


def after(words, word):
    return words[words.index(word) + 1 :]


def value(argv, flag):
    [found] = [arg.removeprefix(f"--{flag}=") for arg in argv if arg.startswith(f"--{flag}=")]
    return found


def documents():
    return list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))


def job():
    return documents()[1]


def wait(done, seconds, what="it"):
    end = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return answer
