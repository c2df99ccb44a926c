"""Handwritten digits from captions ("a bold slanted seven", "a thin 3"), 8x8, embedded: minutes on
two CPU cores.

    python -m experiments.train --config=configs/digits_captions.py:vp --workdir=runs/digits_captions
    python -m experiments.sample --workdir=runs/digits_captions --prompt="a bold seven" --prompt="a thin 3" --guidance=4
    python -m experiments.evaluate --workdir=runs/digits_captions      # on combinations that were kept from training

Variants: ddpm, vp, subvp, ve, edm, flow. The captions are made of the label, the ink and the lean
of each image.
"""

from __future__ import annotations

from configs.base import base, network, variant


def get_config(name: str = "vp"):
    config = variant(base(), name)
    config.data.name = "digits_captions"
    config.text.encoder = "bytes(width=64)"
    config.conditional = False  # the caption is all that is told
    config.model = network(
        "unet.UNet", width=32, multipliers=(1, 2), blocks=1, attention=(4,), head_width=32
    )
    config.optimizer.learning_rate = 2e-3
    config.training.update(steps=1000, eval_every=500, sample_every=500, checkpoint_every=250)
    config.sampler.guidance = 2.0
    if name == "ve":
        # the largest distance in the data is 9.6
        config.process = "schedules.VE(sigma_min=0.02, sigma_max=10.0)"
    return config
