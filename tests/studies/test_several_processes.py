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

import numpy as np
import pytest

from diffusion_jax.data import sound_files
from tests.gloo import without_gloo

ROOT = Path(__file__).parents[2]

# the command and its model -> (its arguments, the JSON file that it writes, what must be equal)
COMMANDS = {
    ("evaluate", "digits"): (
        ["--num=20", "--repeats=2"],
        "evaluation.json",
        ("sets", "mean", "std", "intervals", "real", "real_intervals", "titles"),
    ),
    ("evaluate", "vae"): (
        ["--num=20", "--repeats=1"],
        "evaluation.json",
        ("sets", "mean", "intervals", "real", "autoencoder"),
    ),
    ("likelihood", "digits"): (
        ["--num=10", "--batch_size=4", "--solver=heun", "--steps=2", "--bounds", "--moves=2"],
        "likelihood.json",
        ("rows", "count", "settings"),
    ),
    ("optimize_grid", "digits"): (
        [
            *("--nfe=3", "--starts=6", "--num=20", "--solved=6", "--iterations=2", "--tries=1"),
            "--polish=2",
        ],
        "grids/dpmpp_2m.json",
        ("rows", "logsnr", "exact", "floor"),
    ),
    ("compare_samplers", "digits"): (
        ["--num=20", "--nfe=3,5", "--samplers=ancestral.ddim; multistep.dpmpp_2m@auto"],
        "compare.json",
        ("rows", "floor", "floor_intervals", "titles", "exact"),
    ),
}
OWN = ("seconds_per_image", "seconds", "commit", "date")  # of a row, which are not compared
# float32 sums of x0 and of likelihoods; all else is of images in 8 bits, and equal
ROUNDED = {"error", "order", "shift", "logsnr", "bits", "prior", "diffusion", "reconstruction"}
ROUNDED |= {"rate", "distortion", "elbo", "iw_bound", "psnr"}


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
@pytest.mark.parametrize("command, model", COMMANDS)
def test_two_processes_of_four_devices_write_the_numbers_of_one_process(command, model, tmp_path):
    args, file, keys = COMMANDS[command, model]
    with tarfile.open(ROOT / "tests" / "fixtures" / "workdirs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    one, two = tmp_path / model, tmp_path / "two" / model
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
        if ROUNDED & {*place} and isinstance(value, float):
            expected[place] = pytest.approx(value, rel=1e-5, abs=1e-6)
    assert len(expected) > 30 and found == expected
    assert said[0][0].count("±") == out.count("±") >= 4
    assert not any((two / "evaluation").glob("*"))  # the blocks are discarded with the result
    assert not (two / "likelihood.parts").exists()


def losses(folder):
    """The losses of training and of held-out rows that a run wrote."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows for key in ("loss", "eval_loss") if key in row]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["arrays", "table", "sound"])
def test_two_processes_train_on_arrays_tables_and_sounds_as_one_does(kind, tmp_path):
    """A mapped file whose channels are first, a CSV file with semicolons, and a folder."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.normal(size=(24, 2, 4, 4)).astype("f4"))
    rows = [f"{a:.3f};{b:.3f}".replace(".", ",") for a, b in rng.normal(size=(24, 2))]
    (tmp_path / "a.csv").write_text("\n".join(["a;b", *rows]))
    for i in range(12):
        (tmp_path / "sounds").mkdir(exist_ok=True)
        wave = sound_files.wav(rng.uniform(-0.5, 0.5, (16, 1)), 8000)
        (tmp_path / "sounds" / f"{i}.wav").write_bytes(wave)
    small = ["--config.model.name=dit.DiT", "--config.model.width=8", "--config.model.depth=1"]
    small += ["--config.model.heads=1"]
    args = {
        "arrays": ["a.npy", "--config.data.channel_axis=first", *small],
        "table": ["a.csv", "--config.model.width=8"],
        "sound": ["sounds", *small],
    }[kind]
    config = "tables" if kind == "table" else "arrays"
    command = [f"--config=configs/{config}.py", f"--config.data.path={tmp_path / args[0]}"]
    command += [f"--config.data.name={kind}", *args[1:], "--config.data.batch_size=8"]
    each = {"steps": 2, "eval_every": 2, "sample_every": 0, "checkpoint_every": 2, "log_every": 1}
    command += [f"--config.training.{key}={value}" for key, value in each.items()]
    alone = start("train", tmp_path / "one", *command)
    said = [alone.communicate(timeout=600)]  # before the others, which wait for each other
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    runs = [
        start("train", tmp_path / "two", *command, *flags, f"--process_id={index}", devices=2)
        for index in range(2)
    ]
    said += [process.communicate(timeout=600) for process in runs]
    assert [process.returncode for process in (alone, *runs)] == [0, 0, 0], "\n".join(
        map(str, said)
    )
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(expected) == 3 and found == pytest.approx(expected, rel=1e-4)
