"""Evaluation and statistics as commands."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly import datasets, sampling
from diffusion_jax.assembly.kinds import autoencoder
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import (
    choice,
    features,
)
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.studies import evaluation, scoring
from tests import commands
from tests.evaluation.noise import noise
from tests.markdown import squeezed


@pytest.mark.parametrize(
    "test, classes, said", [(noise(0), 0, "there are none"), (noise(3), 2, "none with labels")]
)
def test_an_autoencoder_without_held_out_images_is_evaluated_without_them(
    test, classes, said, monkeypatch, capsys
):

    choice.note.cache_clear()
    model = SimpleNamespace(num_classes=classes, kind=autoencoder.KIND)
    trained = SimpleNamespace(experiment=model, params=())
    assert evaluation.held_out(
        trained, data.Dataset("noise", noise(9), test, (4, 4, 1), 0, ())
    ) == ({}, "")
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "train, test, said",
    [
        (noise(1), noise(9), "it needs 2 training images, and there are 1"),
        (noise(30), noise(9, (3, 3, 1)), "width"),
    ],
)
def test_evaluation_fails_before_anything_is_sampled(train, test, said, monkeypatch):
    conditions = SimpleNamespace(of_labels=lambda labels: None)
    units = SimpleNamespace(vector=None)
    model = SimpleNamespace(
        num_classes=0,
        encoder=None,
        conditions=conditions,
        units=units,
        dense=None,
        sampling=SimpleNamespace(labels="uniform"),
    )
    trained = SimpleNamespace(experiment=model, params=())
    for name in ("sample_with", "method"):
        monkeypatch.setattr(sampling, name, lambda *args: pytest.fail("sampled first"))
    with pytest.raises(UserError, match=said):
        evaluation.score_samples(
            trained, data.Dataset("noise", train, test, (4, 4, 1), 0, ()), 20, 1
        )


def test_statistics_are_made_by_one_command_and_evaluation_refuses_others(tmp_path):

    path = tmp_path / "digits.npz"
    data_dir = f"--config.data.data_dir={tmp_path}"
    done = commands.run(
        "statistics", "--config=configs/digits.py:vp", data_dir, "--split=test", f"--out={path}"
    )
    assert (
        done.returncode == 0
        and "data digits, split test, image_shape [8, 8, 1], count 297" in done.stdout
    ), done.stderr
    config = digits.get_config("vp")
    config.data.data_dir = str(tmp_path)
    dataset = datasets.dataset(config)
    extractors = [features.extractor("pixels")]
    found = scoring.read_reference(str(path), dataset, extractors)
    real = np.stack([dataset.test[i]["image"] for i in range(297)]).reshape(297, 64) / 255
    np.testing.assert_allclose(found.moments.mean, real.mean(0), atol=1e-6)
    config.data.image_size = 16
    with pytest.raises(UserError, match=r"another image_shape \(\[8, 8, 1\], here \[16, 16, 1\]\)"):
        scoring.read_reference(str(path), datasets.dataset(config), extractors)


def test_the_report_names_every_number_and_its_features():

    mean = {
        "accuracy": 0.9876,
        "frechet": 0.1,
        "frechet/inception": 12.0,
        "kid/inception": 0.002,
        "coverage": 0.5,
    }
    result = {
        "mean": mean,
        "intervals": dict.fromkeys(mean, 0.001),
        "titles": {name: find(name, "pixels").title for name in mean},
        "real": {"accuracy": 0.99, "frechet": 0.05},
        "real_intervals": {"frechet": 0.02},
    }
    lines = squeezed(evaluation.report(result)).splitlines()
    assert lines[0] == "| | samples | real test images |"
    assert lines[2:] == [
        "| recognized | 98.8 ± 0.1 % | 99.0 % |",
        "| Fréchet distance of pixels | 0.1000 ± 0.0010 | 0.050 ± 0.020 |",
        "| FID (inception) | 12.0000 ± 0.0010 | - |",
        "| KID x 1000 (inception) | 2.000 ± 1.000 | - |",
        "| coverage (pixels) | 0.500 ± 0.001 | - |",
        "",
        "±: half the width of the 95 % interval.",
    ]
