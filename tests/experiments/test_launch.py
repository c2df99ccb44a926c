"""The launch files and docs/scaling.md: what they type exists, and signals and statuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from diffusion_jax.assembly import config_files
from diffusion_jax.core.errors import UNFINISHED
from tests.experiments.launch_files import (
    GKE,
    GUIDE,
    LAUNCH,
    POD,
    ROOT,
    SCRIPTS,
    TRICKY,
    bash,
    calls,
    documents,
    example,
    job,
    stub,
    typed,
    value,
    wait,
)

PARSE = """
import json, sys
from absl import flags
from experiments import arguments, cli, values
values.path_flag("workdir", None, "", required=True)
arguments.staging.local = lambda url, flag: url  # no bucket is opened
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
    """srun ends with what the tasks end with; the shell gets SIGTERM from scancel and
    preemption, not of the time limit.
    """
    saved = UNFINISHED
    for status, warned, again in (
        (saved, False, True),
        (saved, True, False),
        (0, False, False),
        (2, False, False),
    ):
        folder = tmp_path / f"{status}{warned}"
        stub(folder, "srun", ("kill -TERM $PPID; " if warned else "") + f"exit {status}")
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
    assert not any("mount" in call or "nfs-common" in call for call in calls(bin, "sudo"))
    stub(bin, "mountpoint", "exit 1")
    share = {"path": bin, "cwd": tmp_path, **POD, "NFS": "10.0.0.2:/s"}
    bash(LAUNCH / "tpu_pod.sh", "install", **share)  # where there is one
    assert ["mount", "-t", "nfs", "10.0.0.2:/s", "/shared"] in calls(bin, "sudo")
    assert ["clone", "-q", "r", "diffusion_jax"] not in calls(
        bin, "git"
    ) and "EXTRAS=tpu,gcs" in calls(bin, "make")[0]


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
