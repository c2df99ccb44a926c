"""Sounds through the commands, by the same keys as images."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest

from tests.data.test_sound import tone, write
from tests.experiments.small_runs import command, width

TINY = ["--config.training.steps=2", "--config.training.sample_every=2", "--nfe=2"]
TINY += ["--config.data.batch_size=4", "--config.training.eval_every=2", "--config.model.stem=2"]
SMALL = ["--config.model.width=8", "--config.model.multipliers=(1,)", "--config.model.blocks=1"]
SMALL += ["--config.model.attention=()"]
TINY += ["--config.data.length=0.06", *SMALL]
SWEEP = ["--over=sampler.nfe=[2, 3]", "--search=grid()", "--num=12", "--metrics=frechet"]
SWEEP += ["--features=pixels"]
KINDS = {"logmel": ("logmel(mels=8, window=64, hop=32)", (16, 8, 1)), "waveform": ("", (480, 1))}


@pytest.fixture
def recordings(tmp_path):
    """Two digits by two speakers, six recordings each."""
    draws = np.random.default_rng(0)
    for digit in range(2):
        for speaker in ("ann", "bob"):
            for index in range(6):
                frequency = 500 + 1500 * digit + draws.uniform(-50, 50)
                own = tone(frequency, 480, amplitude=0.2 + 0.3 * (speaker == "ann"))
                write(tmp_path / "data" / f"{digit}_{speaker}_{index}.wav", own)
    return tmp_path / "data"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_takes_sounds(kind, recordings, tmp_path):
    """From WAV files to WAV files, scores, a comparison with players and a likelihood."""
    run, (spec, shape) = tmp_path / "run", KINDS[kind]
    to = f"--workdir={run}"
    of = ["--config=configs/spoken_digits.py", f"--config.data.path={recordings}"]
    of += [f"--config.data.sound={spec or 'waveform'}", "--config.data.test_where=index=0-1"]
    command("train", *of, to, *TINY)
    about = json.loads((run / "data.json").read_text())
    assert about["image_shape"] == list(shape) and about["num_classes"] == 4
    own = about["normalization"]["sound"]
    assert (own["rate"], own["length"], own["kind"]) == (8000, 480, kind)
    assert width(run / "samples" / "step_0000002.png") > 60
    command("sample", to, "--num=4")
    with np.load(run / "samples.npz") as drawn:
        assert drawn["data"].shape == (4, 480, 1) and drawn["data"].dtype == np.int16
        assert drawn["rate"] == 8000
    with wave.open(str(run / "samples_sounds" / "0003_1_bob.wav")) as file:
        assert file.getnframes() == 480 and file.getframerate() == 8000
    assert (run / "samples.html").read_text().count("<audio") == 4
    command("evaluate", to, "--num=12", "--repeats=1", "--features=pixels")
    scores = json.loads((run / "evaluation.json").read_text())
    wanted = {"accuracy", "accuracy/digit", "accuracy/speaker", "frechet", "spectral_distance"}
    wanted |= {"precision", "recall", "density", "coverage", "nearest_ratio", "copies"}
    assert set(scores["mean"]) == wanted == set(scores["real"])
    assert scores["real"]["accuracy/digit"] == 1  # two tones, far apart
    command("compare_samplers", to, "--samplers=ddim", "--nfe=2", "--num=4", "--features=pixels")
    page = (run / "compare.html").read_text()
    assert "recognized: digit" in page and page.count("<audio") >= 6
    command("likelihood", to, "--num=2", "--solver=rk4", "--steps=2")
    (row,) = json.loads((run / "likelihood.json").read_text())["rows"]
    assert np.isfinite(row["bits"])
    assert ("uniform dequantization" in row["measure"]) == (kind == "waveform")  # of integers
    edit = ["--num=2", "--config.sampler.nfe=2", f"--out={tmp_path}/e"]
    command("edit", to, "--mask=box", "--labels=own", *edit)
    parts = sorted(path.name for path in (tmp_path / "e_sounds").iterdir())
    assert parts[:3] == ["0000_measured.wav", "0000_restored.wav", "0000_truth.wav"]
    assert width(tmp_path / "e.png") > 60 and (tmp_path / "e.html").read_text().count("<audio") == 6
    command("sweep", to, f"--out={tmp_path}/s", *SWEEP)
    assert len((tmp_path / "s" / "sweep.csv").read_text().splitlines()) == 3
    few = ["--recipe=configs/arrays_few_step.py", "--methods=cd", "--steps=2", "--nfe=1"]
    few += [f"--override={option.removeprefix('--config.')}" for option in SMALL]
    few += ["--teacher_nfe=3", "--num=12", "--features=pixels", "--metrics=frechet"]
    command("few_step", *few, f"--teacher={run}", f"--workdir={tmp_path}/f")
    saved = json.loads((tmp_path / "f" / "cd" / "config.json").read_text())["data"]
    assert saved["name"] == "sound" and saved["length"] == 0.06 and "digit" in saved["pattern"]


def test_mistakes_with_sounds_are_one_line(recordings, tmp_path):
    for options, words in (
        (["--config.data.sound=logmel(hop=200)"], "hop at most half of the window"),
        (["--config.data.sound=mfcc"], "unknown representation of sounds 'mfcc'"),
        (["--config.data.path=nowhere"], "does not exist; name a folder of WAV or FLAC files"),
    ):
        done = command(
            "train",
            "--config=configs/spoken_digits.py",
            f"--config.data.path={recordings}",
            f"--workdir={tmp_path}/r",
            *options,
            expect=2,
        )
        assert words in done.stderr and "Traceback" not in done.stderr
