"""Configs cut down to seconds, and what the tests read of their runs."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from diffusion_jax.training import metrics
from tests import commands

ROOT = Path(__file__).parents[2]


SMALL = {
    "unet.UNet": dict(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8),
    "mlp.MLP": dict(width=8, blocks=1),
    "dit.DiT": dict(width=8, depth=1, heads=1, registers_from=0),
    "sd_unet.SDUNet": dict(
        width=8, multipliers=(1,), blocks=1, depth=(0,), heads=(1,), middle_depth=1, norm=(4, 1e-5)
    ),
    "autoencoder.VAE": dict(hidden=(8,), latent=2, pixel_width=4),
    "autoencoder.AutoencoderKL": dict(width=8, multipliers=(1,), blocks=1, norm=None),
}


def small(config, **training):
    """A config cut down to seconds; one step is one batch of 16."""
    config.data.batch_size = 16
    config.training.update(
        {"steps": 8, "log_every": 2, "eval_every": 4, "sample_every": 8, "checkpoint_every": 4}
        | training
    )
    config.optimizer.warmup = 2
    config.sampler.nfe = 3
    config.model.update(SMALL[config.model.name])
    return config


def width(path):
    """Return the width of an image file in pixels."""
    with Image.open(path) as picture:
        return picture.size[0]


def rows(folder):
    return [
        {k: v for k, v in row.items() if k != "timing"}
        for row in metrics.read_rows(folder / "metrics.jsonl")
    ]


def command(*args, expect=0):
    done = commands.run(*args)
    assert done.returncode == expect, done.stdout + done.stderr
    return done
