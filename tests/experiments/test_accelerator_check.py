"""accelerator_check.sh: its arguments, its report, and, with tiny sizes on the CPU, its stages."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core import npz
from experiments.launch import accelerator_stages
from tests.experiments.launch_files import LAUNCH, ROOT

CHECK, WHEELS = LAUNCH / "accelerator_check.sh", LAUNCH / "accelerator_wheels.sh"


def check(*arguments, expect=0, **environ):
    environ = {name: v for name, v in os.environ.items() if name != "OUT"} | environ
    done = subprocess.run(
        [CHECK, *map(str, arguments)],
        env={"PYTHON": sys.executable} | environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_mistakes_are_one_line_before_anything_runs(tmp_path):
    assert "--minutes=13" in check(expect=2).stdout and "OUT" in check("--help", expect=2).stdout
    out = tmp_path / "out"
    for argument, words in {
        "--stages=test": "there is no test; there are: install environment",
        "--minutes=ten": "write a whole number",
        "--minutes=0": "write a whole number from 1",
        "--minuets=9": "unknown argument --minuets=9",
        "another": "give one",
        f"--data={tmp_path}/none": "none does not exist",
    }.items():
        assert words in check(out, argument, expect=2).stderr
    assert not out.exists()


def test_the_wheels_are_pinned_and_serve_requirements_of_the_package():
    names = re.search(r"packages=\$\{PACKAGES:-(.*?)\}", WHEELS.read_text(), re.S)[1]
    names = {name.lower() for name in names.replace("\\", "").split()}
    pinned = (ROOT / "constraints" / "py3.12.txt").read_text().lower()
    assert all(f"\n{name}==" in pinned for name in names)
    assert not any(name.startswith(("jax", "tensorflow-cpu", "nvidia")) for name in names)
    asked = (ROOT / "setup.cfg").read_text().lower()
    assert {"grain", "tensorflow-datasets", "ml_collections", "tensorboardx"} <= names
    assert sum(f"    {name}>=" in asked for name in names) >= 6


def test_the_report_shows_what_passed_failed_and_was_cut(tmp_path):
    """Of tests that were cut, those that ended count; a stage without output says so."""
    stages = [
        {"stage": "tests", "result": "cut after 7 s", "seconds": 7, "limit": 7},
        {
            "stage": "training",
            "result": "FAILED with status 1, see log.txt",
            "seconds": 1,
            "limit": 9,
        },
        {"stage": "sampling", "result": "not run: no time was left", "seconds": 0, "limit": 0},
    ]
    (tmp_path / "stages.jsonl").write_text("\n".join(map(json.dumps, stages)) + "\n")
    (tmp_path / "tests.out").write_text(
        "tests/accelerator/test_a.py::test_one[7-32] PASSED   [ 10%]\n"
        "tests/accelerator/test_a.py::test_two FAILED         [ 20%]\n"
        "tests/accelerator/test_a.py::test_three "
    )
    out = tmp_path / "out"
    accelerator_stages.report(tmp_path, out)
    text = (out / "report.md").read_text()
    assert re.search(r"\| tests +\| cut after 7 s", text)
    assert re.search(r"test_a.py \| +1 \| +1 \|", text) and "failed: `tests/" in text
    assert "No row of metrics was written." in text and "## sampling: not run" in text
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["tests"]["numbers"]["failed"] == ["tests/accelerator/test_a.py::test_two"]


def test_jpeg_files_in_one_array_become_a_data_set(tmp_path):
    """Their pixels, classes and splits; and without data the pictures are said to be synthetic."""
    encoded = []
    for value in (0, 128, 255):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (value, 64, 0)).save(buffer, "JPEG", quality=95)
        encoded.append(buffer.getvalue())
    npz.save(
        tmp_path / "packed.npz",
        {
            "jpg": np.frombuffer(b"".join(encoded), np.uint8),
            "offsets": np.cumsum([0, *map(len, encoded)]),
            "label": np.asarray([3, 1, 2], np.uint8),
            "is_test": np.asarray([0, 0, 1], np.uint8),
        },
    )
    accelerator_stages.data(tmp_path, str(tmp_path / "packed.npz"), tiny=True)
    with np.load(tmp_path / "data.npz") as made:
        assert made["x_train"].shape == (2, 32, 32, 3) and made["y_train"].tolist() == [3, 1]
        assert np.abs(made["x_test"][0, 0, 0] - [255, 64, 0]).max() < 12
    assert "--config.data.name=npz\n" in accelerator_stages.flags_of_data(tmp_path)
    assert "SYNTHETIC" in accelerator_stages.data(tmp_path, "", tiny=True)
    with np.load(tmp_path / "data.npz") as made:
        assert made["x_train"].shape == (256, 32, 32, 3) and made["x_train"].std() > 20


STUB = """#!/usr/bin/env bash
# a Python whose training crashes once, then trains until SIGTERM, when it saves
case "$*" in
  *experiments.train*)
    for word; do case $word in --workdir=*) run=${word#--workdir=} ;; esac; done
    [ -e "$run" ] || { mkdir -p "$run"; echo crashed >&2; exit 1; }
    trap 'mkdir -p "$run/checkpoints/30"; echo saved >&2; kill $!; exit 75' TERM
    sleep 300 & wait ;;
  *experiments.sample*) echo drawn; exit 3 ;;
  *experiments.evaluate*) echo never; exit 0 ;;
  *) exec REAL "$@" ;;
esac
"""


@pytest.mark.long
def test_training_that_crashes_and_is_cut_is_used_and_a_failure_stops_nothing(tmp_path):
    """It resumes after the crash, saves at the time limit and counts as done; a failed stage is
    followed by the next.
    """
    python = tmp_path / "python"
    python.write_text(STUB.replace("REAL", sys.executable))
    python.chmod(0o755)
    out, stages = tmp_path / "out", "--stages=data,training,sampling"
    done = check(out, "--tiny", "--minutes=2", stages, expect=1, PYTHON=str(python))
    assert "training: done" in done.stderr and "sampling: FAILED with status 3" in done.stderr
    log = (out / "log.txt").read_text()
    assert log.count("crashed") == 1 and log.count("saved") == 1
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["training"]["seconds"] <= numbers["training"]["limit"] + 5


@pytest.mark.long
def test_the_tiny_check_trains_samples_and_scores(tmp_path):
    """Its cheap stages, within minutes; training is cut by its time and its checkpoint is used."""
    stages = "install,environment,data,training,sampling,evaluation"
    check(tmp_path / "out", "--tiny", "--minutes=20", f"--stages={stages}", f"--work={tmp_path}/w")
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [stage["result"] for stage in numbers.values()] == ["done"] * 6
    assert not numbers["environment"]["numbers"]["unmet"]
    assert numbers["training"]["numbers"]["steps"] > 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "SYNTHETIC" in text and "Only the distance of Inception features is FID" in text
    assert (tmp_path / "out" / "samples.png").is_file()
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.long
def test_the_tests_of_an_accelerator_pass_on_the_cpu_with_tiny_sizes():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/accelerator"]
    environ = os.environ | {"ACCELERATOR_TESTS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:]
