"""NCSN++ under the variance-exploding SDE on CIFAR-10 (Song et al. 2021, score_sde).

    python -m experiments.train --config=configs/papers/ncsnpp_ve.py:deep --workdir=runs/ncsnpp

Data: TFDS's `cifar10`. The paper is "Score-based generative modeling through stochastic
differential equations". Settings: its appendix H, and the authors'
configs/ve/cifar10_ncsnpp_continuous.py and _deep_continuous.py. Unconditional, batches of 128.
FID is that of table 3 with 1000 steps of the predictor-corrector sampler, at the best checkpoint.
Hardware and time: the paper states none for this model.

Variants: none, 62.8 million parameters and 1.3 million steps (FID 2.38); deep, 107.6 million
parameters and 950,000 steps (FID 2.20).

Their images have values in [0, 1], ours in [-1, 1], so all noise levels are twice theirs.
"""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from configs.papers._score_sde import score_sde
from diffusion_jax.models.ncsnpp import PRESETS

LOW, HIGH = 0.01, 50.0  # for images with values in [0, 1]


def get_config(name: str = "") -> ConfigDict:
    """Return the config of a depth.

    Args:
      name: '', or 'deep' with twice the residual blocks.

    Raises:
      UserError: for another name.
    """
    # their loss is half of the sum over the 32 x 32 x 3 numbers of an image
    config = score_sde(name, PRESETS["ncsnpp"], 0.999, numbers=32 * 32 * 3 // 2, steps=1_300_000)
    config.process = f"schedules.VE(sigma_min={2 * LOW}, sigma_max={2 * HIGH}, t_min=1e-05)"
    # the network receives the logarithm of the noise level, and the image as it is
    scale, shift = math.log(HIGH / LOW), math.log(LOW)
    inputs = f"input_scale=False, time_scale={scale!r}, time_shift={shift!r}"
    config.parameterization = f"eps(noise_input='time', {inputs})"
    config.sampler.update(
        name="corrector.predictor_corrector(snr=0.16)", grid="uniform", nfe=2000, clip="none"
    )
    return config
