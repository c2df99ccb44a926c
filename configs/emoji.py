r"""Emoji from captions, 32x32 in color, or any .npz of images with a JSON list of captions.

    python -m experiments.get_weights minilm
    python -m experiments.train --config=configs/emoji.py:edm \
        --config.data.path=FOLDER/emoji32.npz --workdir=runs/emoji
    python -m experiments.sample --workdir=runs/emoji --prompt="a red heart" \
        --prompt="a yellow smiling face" --guidance=4

Data: an .npz file of images; the captions are in FOLDER/emoji32_captions.json, or where
--config.data.captions says. Time: `light` (the default) is sized for two CPU cores and a few hours,
`full` for an accelerator.

Variants: ddpm, vp, subvp, ve, edm, flow; each also with ',full'. --config.text.encoder=bytes
--config.text.max_length=100 needs no download.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, network, split_size, variant


def get_config(name: str = "edm") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow, and after a comma the size, light or full, as in
        'edm,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name)
    config = variant(base(), name)
    config.data.update(name="npz", image_size=32, channels=3)
    config.text.update(encoder="minilm", max_length=24)
    config.conditional = False  # the caption is the whole condition
    if size == "light":  # a space-to-depth stem: the network works at 16x16 and 8x8
        config.model = network(
            "unet.UNet",
            stem=2,
            width=48,
            multipliers=(1, 2),
            blocks=2,
            attention=(8,),
            head_width=32,
        )
        config.data.batch_size = 64
        config.training.update(
            steps=20_000, eval_every=2000, sample_every=2000, checkpoint_every=1000
        )
        config.ema.halflives = (50_000,)
    else:
        config.model = network(
            "unet.UNet",
            width=128,
            multipliers=(1, 2, 2),
            attention=(16, 8),
            dropout=0.1,
            dtype="bfloat16",
        )
        config.data.batch_size = 256
        config.optimizer.warmup = 1000
        config.training.update(
            steps=40_000,
            steps_per_call=10,
            eval_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
        )
        config.ema.halflives = (250_000,)
    config.optimizer.learning_rate = 5e-4
    config.sampler.guidance = 3.0
    return config
