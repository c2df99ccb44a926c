"""Commands that judge images: two processes of four devices each write what one process writes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.gloo import without_gloo

ROOT = Path(__file__).parents[2]

COMMANDS = {  # the command -> (its arguments, the JSON file that it writes, what must be equal)
    "evaluate": (
        ["--num=20", "--repeats=2"],
        "evaluation.json",
        ("sets", "mean", "std", "intervals", "real", "real_intervals", "titles"),
    ),
    "compare_samplers": (
        ["--num=20", "--nfe=3,5", "--samplers=ancestral.ddim; multistep.dpmpp_2m@auto"],
        "compare.json",
        ("rows", "floor", "floor_intervals", "titles", "exact"),
    ),
}
OWN = ("seconds_per_image", "commit", "date")  # of a row, which are not compared
ROUNDED = ("error", "order")  # of x0 in float32; all else is of images in 8 bits, and equal


def start(command, folder, *args, devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{command}", f"--workdir={folder}", *args],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def numbers(path, keys):
    """What a command wrote by the place in its file, without what the clock measures."""
    found = {}

    def walk(value, place):
        if isinstance(value, (dict, list)):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            for key, each in parts:
                walk(each, (*place, key))
        elif not {*OWN} & {*place}:
            found[place] = value

    content = json.loads(path.read_text())
    walk({key: content[key] for key in keys}, ())
    return found


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_of_four_devices_write_the_numbers_of_one_process(command, tmp_path):
    args, file, keys = COMMANDS[command]
    with tarfile.open(ROOT / "tests" / "fixtures" / "workdirs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    one, two = tmp_path / "digits", tmp_path / "two" / "digits"
    shutil.copytree(one, two)
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    pair = [
        start(command, two, *args, *flags, f"--process_id={index}", devices=4) for index in range(2)
    ]
    said = [process.communicate(timeout=600) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert without_gloo(said[1][0]) == ""  # the first process speaks for all
    alone = start(command, one, *args)
    out, err = alone.communicate(timeout=600)
    assert alone.returncode == 0, err
    found, expected = numbers(two / file, keys), numbers(one / file, keys)
    for place, value in expected.items():
        if {*ROUNDED} & {*place} and isinstance(value, float):
            expected[place] = pytest.approx(value, rel=1e-5)
    assert len(expected) > 30 and found == expected
    assert said[0][0].count("±") == out.count("±") > 4
    assert not any((two / "evaluation").glob("*"))  # the blocks are discarded with the result
