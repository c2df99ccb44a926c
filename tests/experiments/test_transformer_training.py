"""Transformers train: JiT, on the digits and as its recipe with a narrow network."""

from __future__ import annotations

import numpy as np
import pytest

from configs import digits_jit
from configs.papers import jit_imagenet
from diffusion_jax.assembly import train, workdir
from tests.experiments.small_runs import rows

pytestmark = pytest.mark.long

STEPS = 50
NARROW = dict(width=24, depth=2, heads=2, bottleneck=8, registers=2, registers_from=1)


def configs():
    recipe = jit_imagenet.get_config("B/32")
    recipe.data.update(name="digits", image_size=0, channels=0, num_classes=0, flip=False)
    recipe.model.update(patch=4, dtype="float32", **NARROW)
    preset = digits_jit.get_config("x0")
    preset.model.update(NARROW)
    return {"recipe": recipe, "preset": preset}


@pytest.mark.parametrize("name", ["recipe", "preset"])
def test_jit_trains(name, tmp_path):
    """The loss falls, the gradient is finite, samples are drawn, and the model is loaded again."""
    config = configs()[name]
    config.data.update(batch_size=64, data_dir=str(tmp_path / "data"))
    config.training.update(steps=STEPS, steps_per_call=1, log_every=5, checkpoint_every=STEPS)
    config.training.update(sample_every=STEPS, eval_every=0)
    config.optimizer.update(learning_rate=2e-3, warmup=5)
    config.sampler.nfe = 5
    path = tmp_path / name
    assert train.train(config.lock(), str(path))
    logged = [row for row in rows(path) if "loss" in row]
    losses = np.array([row["loss"] for row in logged])
    assert len(losses) == STEPS // 5 and np.isfinite(losses).all()
    assert losses[-3:].mean() < 0.8 * losses[:2].mean()
    assert (path / "samples" / f"step_{STEPS:07d}.png").exists()
    assert workdir.load(path, workdir.saved_config(str(path))).step == STEPS
