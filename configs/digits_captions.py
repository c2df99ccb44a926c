r"""Handwritten digits from captions ("a bold slanted seven", "a thin 3"), 8x8.

    python -m experiments.train --config=configs/digits_captions.py:vp \
        --workdir=runs/digits_captions
    python -m experiments.sample --workdir=runs/digits_captions --prompt="a bold seven" \
        --prompt="a thin 3" --guidance=4
    python -m experiments.evaluate --workdir=runs/digits_captions

Data: embedded in the package; the captions are made of the label, the ink and the slant of each
image, and `evaluate` uses combinations that are held out of training. Time: minutes on two CPU
cores.

Variants: ddpm, vp, subvp, ve, edm, flow.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, network, variant
from diffusion_jax.assembly.specs import with_args


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow.

    Raises:
      UserError: for an unknown variant.
    """
    config = variant(base(), name)
    config.data.name = "digits_captions"
    config.text.encoder = "bytes(width=64)"
    config.conditional = False  # the caption is the whole condition
    config.model = network(
        "unet.UNet", width=32, multipliers=(1, 2), blocks=1, attention=(4,), head_width=32
    )
    config.optimizer.learning_rate = 2e-3
    config.training.update(steps=1000, eval_every=500, sample_every=500, checkpoint_every=250)
    config.sampler.guidance = 2.0
    if name == "ve":
        # the largest distance in the data is 9.6
        config.process = with_args(config.process, sigma_max=10.0)
    return config
