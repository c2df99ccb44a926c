"""How sounds are judged: pictures of their spectrograms, fields of their classes, their spectra."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.data import sound, sound_sets
from diffusion_jax.evaluation import choice, hearing, judge
from diffusion_jax.evaluation.metrics import find


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """48 short tones of two digits (their pitch) by two speakers (their level), in an .npz file."""
    draws = np.random.default_rng(0)
    digit, speaker = np.arange(48) % 2, np.arange(48) // 2 % 2
    frequency = 600 + 1800 * digit + draws.uniform(-40, 40, 48)
    phase = 2 * np.pi * frequency[:, None] * np.arange(256) / 8000 + draws.uniform(0, 6, (48, 1))
    waves = (0.05 + 0.5 * speaker)[:, None] * np.sin(phase)
    file = tmp_path_factory.mktemp("tones") / "tones.npz"
    arrays = {"digit": digit, "speaker": speaker, "index": np.arange(48) // 4}
    np.savez(file, data=waves.astype(np.float32), rate=8000, **arrays)
    request = sound_sets.Request(
        sound.logmel(16, 64, 32), class_fields=("digit", "speaker"), test_where="index=0-3"
    )
    return sound_sets.load(str(file), request)


METRICS = ("accuracy", "frechet", "spectral_distance")


def test_real_sounds_are_recognized_and_others_are_not(tones):
    test = tones.test.rows(np.arange(16))
    how = {"features": ("pixels",), "metrics": METRICS, "held_out": tones.test}
    judged = judge.against(tones.train, test["label"], **how)
    real = judged(test["image"])
    assert real["accuracy"] == real["accuracy/digit"] == real["accuracy/speaker"] == 1
    # the same speakers with the other digit
    other = judged(test["image"], (test["label"] + 2) % 4)
    assert (other["accuracy/digit"], other["accuracy/speaker"], other["accuracy"]) == (0, 1, 0)
    silent = judged(np.full_like(test["image"], test["image"].min()))
    assert silent["frechet"] > 10 * real["frechet"]
    # (pure tones in short windows are hard to invert at 60 dB below their level)
    assert silent["spectral_distance"] > 3 * real["spectral_distance"]


def test_the_spectral_distance_is_the_difference_of_levels():
    """Twice the amplitude everywhere is 6.02 dB."""
    quiet = np.full((3, 4, 5, 1), -4.0)
    spectra = [hearing.spectrum(hearing.pictures(x)).mean(0) for x in (quiet, quiet + np.log(2))]
    assert hearing.spectral_distance(*spectra) == pytest.approx(6.02, abs=0.2)


def test_metrics_and_features_of_sounds(tones):
    found = choice.choose(tones.train, np.zeros(9, int), held_out=tones.test, count=9)
    assert found.metrics[:5] == choice.OF_SOUNDS
    assert [extractor.name for extractor in found.features] == ["pixels"]
    assert find("accuracy/digit").title == "recognized: digit"
    assert find("accuracy/digit").text(0.5) == "50.0 %"
    image = hearing.as_judged(tones.train)
    assert hearing.as_judged(image) is image and hearing.sound_of(image).fields[0][0] == "digit"
