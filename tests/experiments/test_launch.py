"""The launch files, and docs/scaling.md: what they type exists, what they promise about signals and
statuses happens.

The clusters' own programs are played by stubs that record or run what they are given. With
DIFFUSION_JAX_SLURM=1, where SLURM is installed (Debian: slurm-wlm, munge), a real one-node cluster
is started as well, and slurm.sbatch trains on it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from diffusion_jax import files
from diffusion_jax.assembly import config_files
from diffusion_jax.errors import UNFINISHED
from diffusion_jax.training import metrics, restoring

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
    "NFS": "10.0.0.2:/s",
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


PARSE = """
import json, sys
from absl import flags
from experiments import arguments, cli, values
values.path_flag("workdir", None, "", required=True)
for name, argv in json.load(sys.stdin):
    try:
        arguments.parse(["train", *argv], "file")
    except SystemExit:
        print("^", name, *argv, file=sys.stderr)
        raise
    flags.FLAGS.unparse_flags()
"""


def parse(named):
    """Every argv is one that experiments.train takes: its config exists, and so does every flag and
    key.
    """
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(named),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_guide_and_every_launch_file_type_what_experiments_train_takes(tmp_path):
    found = typed(tmp_path)
    assert {argv[1] for argv in found.values()} == {"experiments.train"}
    for name in SCRIPTS:
        assert found[name][2:] == [*example(name), TRICKY]  # through every shell on the way
    parse([(name, argv[2:]) for name, argv in found.items()] + guide_commands())


def guide_commands():
    """(line, arguments) of every experiments.train in docs/scaling.md, typed there or handed to a
    script.
    """
    text = (
        "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.S))
        .replace("\\\n", " ")
        .replace("$i", "1")
    )
    lines = [line for line in text.splitlines() if "--workdir=" in line]

    def typed(line):
        return shlex.split(line[line.index("--config=") :], comments=True)

    return [(line, [word for word in typed(line) if word != "&"]) for line in lines]


def test_the_guide_names_every_launch_file_and_no_other():
    there = {p.name for p in LAUNCH.iterdir() if p.is_file()}
    assert set(re.findall(r"experiments/launch/([\w.]+\w)", GUIDE.read_text())) == there
    assert len(guide_commands()) >= 5


def test_every_config_and_command_that_the_guide_names_exists():
    text = GUIDE.read_text()
    for spec in set(re.findall(r"--config=(\S+)", text)):
        config_files.load_config(spec)
    assert all(
        (ROOT / "experiments" / f"{name}.py").is_file()
        for name in re.findall(r"-m experiments\.(\w+)", text)
    )


@pytest.mark.parametrize("file", SCRIPTS)
def test_a_script_is_whole_and_says_what_it_lacks(file, tmp_path):
    subprocess.run(["bash", "-n", LAUNCH / file], check=True)
    assert os.access(LAUNCH / file, os.X_OK)
    if file == "slurm.sbatch":
        return
    settings = POD if file == "tpu_pod.sh" else GKE
    assert (
        "experiments/launch/" + file
        in bash(LAUNCH / file, path=tmp_path, cwd=tmp_path, expect=2, **settings).stdout
    )
    done = bash(LAUNCH / file, "train", "--workdir=w", path=tmp_path, cwd=tmp_path, expect=1)
    assert re.search(r"(NAME|CLUSTER): ", done.stderr)


def test_the_slurm_job_is_queued_again_after_the_time_limit_and_only_then(tmp_path):
    """srun ends with what the tasks end with; the shell is told (SIGTERM) of scancel and
    preemption, not of the time limit.
    """
    saved = UNFINISHED
    for status, told, again in (
        (saved, False, True),
        (saved, True, False),
        (0, False, False),
        (2, False, False),
    ):
        folder = tmp_path / f"{status}{told}"
        stub(folder, "srun", ("kill -TERM $PPID; " if told else "") + f"exit {status}")
        stub(folder, "scontrol")
        bash(
            LAUNCH / "slurm.sbatch",
            "--config=c",
            path=folder,
            cwd=tmp_path,
            expect=status,
            SLURM_JOB_ID="7",
        )
        assert calls(folder, "scontrol") == ([["requeue", "7"]] if again else [])
    assert "--requeue" in (LAUNCH / "slurm.sbatch").read_text()


def test_a_pod_is_asked_for_installed_trained_on_stopped_and_given_back(tmp_path):
    """gcloud is a stub that runs what is sent to the hosts here, in a home where `python` waits for
    SIGTERM.
    """
    bin, python = tmp_path / "bin", tmp_path / "diffusion_jax" / ".venv" / "bin"
    stub(bin, "gcloud", 'for a; do case $a in --command=*) bash -c "${a#--command=}";; esac; done')
    stub(
        python,
        "python",
        f"trap 'echo saved; exit {UNFINISHED}' TERM; while :; do sleep 0.05; done",
    )

    def pod(*action, expect=0):
        return bash(LAUNCH / "tpu_pod.sh", *action, path=bin, cwd=tmp_path, expect=expect, **POD)

    pod("create")
    pod("queue")
    create, queue = calls(bin, "gcloud")
    tpus = ["compute", "tpus"]
    assert create == [
        *tpus,
        "tpu-vm",
        "create",
        "n",
        "--zone=z",
        "--accelerator-type=v5litepod-256",
        "--version=v",
    ]
    assert queue[:5] == [*tpus, "queued-resources", "create", "n"] and "--node-id=n" in queue
    try:
        pod("train", "--config=c", TRICKY)
        wait(lambda: calls(python, "python"), 10)
        assert calls(python, "python") == [["-m", "experiments.train", "--config=c", TRICKY]]
        assert "runs already" in pod("train", "--config=c", expect=1).stderr
    finally:
        pod("stop")
    wait(lambda: "saved" in (tmp_path / "diffusion_jax" / "train.log").read_text(), 10)
    pod("delete")
    sent = [call for call in calls(bin, "gcloud") if "ssh" in call]
    assert len(sent) == 3 and all("--worker=all" in call for call in sent)
    for name in ("sudo", "git", "make", "python3", "mountpoint"):
        stub(bin, name)
    pod("install")
    assert ["clone", "-q", "r", "diffusion_jax"] not in calls(bin, "git") and "EXTRAS=tpu" in calls(
        bin, "make"
    )[0]


def test_the_kubernetes_job_agrees_with_itself():
    service, spec = documents()[0], job()["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    host, port = value(container["args"], "coordinator").split(":")
    name, domain = job()["metadata"]["name"], service["metadata"]["name"]
    assert host == f"{name}-0.{domain}" and pod["subdomain"] == domain
    assert (
        service["spec"]["selector"] == {"job-name": name} and service["spec"]["clusterIP"] == "None"
    )
    assert int(port) == container["ports"][0]["containerPort"]
    assert spec["completionMode"] == "Indexed"
    assert (
        int(value(container["args"], "num_processes")) == spec["completions"] == spec["parallelism"]
    )
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    [ignored] = [
        rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert (
        ignored == [UNFINISHED] and pod["restartPolicy"] == "Never"
    )  # a pod failure policy demands Never
    assert "PROCESS_ID" in [variable["name"] for variable in container["env"]]


def test_every_cluster_starts_a_saved_run_again(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [UNFINISHED]
    bash(LAUNCH / "xpk.sh", "--config=c", path=stub(tmp_path, "xpk").parent, cwd=tmp_path, **GKE)
    assert int(value(calls(tmp_path, "xpk")[0], "restart-on-exit-codes")) == UNFINISHED


# ---- a real SLURM ----
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


def wait(done, seconds, what="it"):
    end = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return answer


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
    host, user = (
        socket.gethostname().split(".")[0],
        subprocess.check_output(["id", "-un"], text=True).strip(),
    )
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
        run(
            "munged",
            "--force",
            f"--key-file={at}/key",
            f"--socket={at}/munge",
            f"--pid-file={at}/munged.pid",
            f"--log-file={at}/munged.log",
            f"--seed-file={at}/seed",
        )
        run("slurmctld", "-f", at / "slurm.conf")
        run("slurmd", "-f", at / "slurm.conf", "-N", host)
        wait(lambda: run("sinfo", "-h", "-o", "%T") == "idle", 30, "the node")
        yield run
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            if (at / f"{name}.pid").exists():
                os.kill(int((at / f"{name}.pid").read_text()), signal.SIGTERM)


def test_slurm_trains_with_two_tasks_and_a_job_cancelled_or_requeued_goes_on(slurm, tmp_path):
    """Stopped by scancel, submitted again, requeued in the middle: the rows are those of the job
    that was left alone.
    """

    def submit(workdir):
        venv = Path(sys.executable).parent.parent
        options = TINY | {"data.data_dir": tmp_path / "data"}
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

    def state(number):
        return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", number))[1]

    def rows(workdir):
        return [
            {k: v for k, v in row.items() if k != "timing"}
            for row in metrics.read_rows(workdir / "metrics.jsonl")
        ]

    def reaches(workdir, step):
        path = workdir / "metrics.jsonl"
        wait(
            lambda: path.exists() and f'"step": {step},' in path.read_text(),
            300,
            f"step {step} in {workdir}.out",
        )

    def ends(number, workdir):
        wait(
            lambda: state(number) not in ("RUNNING", "PENDING", "COMPLETING"), 600, f"job {number}"
        )
        assert state(number) == "COMPLETED", Path(f"{workdir}.out").read_text()

    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    ends(submit(alone), alone)
    assert "2 device(s); starting" in Path(f"{alone}.out").read_text()
    assert files.load_json(alone / "provenance.json")["devices"]["processes"] == 2
    assert [row["step"] for row in rows(alone)] == list(
        range(10, 201, 10)
    )  # one file, one row per step: the first task writes

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
    told = Path(f"{stopped}.out").read_text()
    assert told.count("resuming at step") == 2 and f"resuming at step {saved}" in told
    assert "Restarts=1" in slurm("scontrol", "show", "job", second)
    assert rows(stopped) == rows(alone)
