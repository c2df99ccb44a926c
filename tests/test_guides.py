"""docs/guides/fine_tuning.md, followed on 500 images with fewer steps; the data of series.md."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffusion_jax import data
from diffusion_jax.assembly import trainer
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import folders
from tests import commands
from tests.test_docs import ROOT, pasted, typed

GUIDE = ROOT / "docs" / "guides" / "fine_tuning.md"
SMALLER = {
    "sample": ["--num=2", "--nfe=3"],
    "train": ["--config.training.steps=4", "--config.training.log_every=2"]
    + [f"--config.training.{name}_every=4" for name in ("eval", "sample", "checkpoint")]
    + ["--config.sampler.nfe=3"],
    "evaluate": ["--num=10", "--nfe=3"],
    "publish": ["--nfe=3"],
}


def images(folder: Path, count: int = 500) -> None:
    """Circles and crosses of different sizes and places."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = ("circle", "cross")[number % 2]
        picture = Image.new("L", (40, 40))
        x, y, r = rng.integers(10, 16), rng.integers(10, 16), rng.integers(8, 14)
        draw, box = ImageDraw.Draw(picture), [x - 8, y - 8, x + r, y + r]
        if name == "circle":
            draw.ellipse(box, outline=255, width=3)
        else:
            draw.line(box, fill=255, width=3)
            draw.line([box[0], box[3], box[2], box[1]], fill=255, width=3)
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture.save(folder / name / f"{number:03}.png")


@pytest.mark.long
def test_the_guide_to_fine_tuning_can_be_followed(tmp_path):
    images(tmp_path / "FOLDER")
    for name in ("configs", "pretrained"):
        os.symlink(ROOT / name, tmp_path / name)
    seen, errors = [], ""
    for _, (name, *words) in typed(GUIDE):
        command = name.removeprefix("experiments.")
        done = commands.run(command, *words, *SMALLER[command], folder=tmp_path)
        assert done.returncode == 0, f"{name} {words}\n{done.stdout}{done.stderr}"
        seen, errors = [*seen, command], errors + done.stderr
    assert seen == ["sample", "train", "sample", "evaluate", "publish"]
    assert "config.init_from=mnist has 10 classes and this model has 2" in errors
    assert (tmp_path / "runs/pretrained/mnist/samples.png").is_file()
    assert folders.is_published(tmp_path / "runs/published/mine")


def test_a_network_of_other_classes_keeps_the_vector_of_no_class():
    def tree(classes, value, width=3):
        rows = np.full((classes + 1, width), value, np.float32)
        return {"label": {"rows": trainer.jax.numpy.asarray(rows)}}

    found = trainer.grafted(tree(2, 0.0), tree(4, 1.0))["label"]["rows"]
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    same = trainer.grafted(tree(4, 0.0), tree(4, 1.0))["label"]["rows"]
    assert (same == 1).all()
    with pytest.raises(UserError, match="its network is another"):
        trainer.grafted(tree(4, 0.0), tree(4, 1.0, width=5))


def test_the_loudness_of_recordings_is_a_series(tmp_path, monkeypatch):
    """docs/guides/series.md: half of full scale is -6 dB, and what is beyond the end is silent."""
    monkeypatch.chdir(tmp_path)
    lengths, count = np.array([160, 6000, 80, 240]), 4
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pcm = np.full(offsets[-1], 2**14, np.int16)
    about = {"label": np.arange(count) % 2, "index": np.array([0, 7, 4, 9])}
    np.savez("spoken.npz", pcm=pcm, offsets=offsets, **about)
    pasted("def envelopes", page="guides/series")["envelopes"]("spoken.npz")
    loaded = data.load("arrays", path="envelopes.npz")
    assert loaded.image_shape == (64, 1) and (len(loaded.train), len(loaded.test)) == (2, 2)
    held_out = loaded.test.values[..., 0]
    np.testing.assert_allclose(held_out[0, :2], 20 * np.log10(0.5), atol=1e-3)
    np.testing.assert_allclose(held_out[0, 2:], -60, atol=1e-3)
    assert loaded.train.values[0, :, 0].min() > -7 and loaded.test.labels.tolist() == [0, 0]
