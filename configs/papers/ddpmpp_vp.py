"""DDPM++ under the variance-preserving SDE on CIFAR-10 (Song et al. 2021, score_sde).

    python -m experiments.train --config=configs/papers/ddpmpp_vp.py:deep --workdir=runs/ddpmpp_vp

Data: TFDS's `cifar10`. The paper is "Score-based generative modeling through stochastic
differential equations". Settings: its appendix H, and the authors'
configs/vp/cifar10_ddpmpp_continuous.py and _deep_continuous.py. Unconditional, batches of 128.
FID is that of table 3 with 1000 steps of Euler-Maruyama, at the best checkpoint. Hardware and time:
the paper states none for this model.

Variants: none, 61.8 million parameters and 1.3 million steps (FID 2.55); deep, 106.6 million
parameters and 950,000 steps (FID 2.41).

The data end of training, t = 1e-5, is also that of sampling; theirs ends at 1e-3.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.papers._score_sde import score_sde
from diffusion_jax.models.ncsnpp import PRESETS


def get_config(name: str = "") -> ConfigDict:
    """Return the config of a depth.

    Args:
      name: '', or 'deep' with twice the residual blocks.

    Raises:
      UserError: for another name.
    """
    config = score_sde(name, PRESETS["ddpmpp"], 0.9999, steps=1_300_000)
    config.process = "schedules.VP(beta_min=0.1, beta_max=20.0, t_min=1e-05)"
    config.parameterization = "eps(noise_input='time', input_scale=False, time_scale=999.0)"
    config.sampler.update(name="sde.euler_maruyama", grid="uniform", nfe=1000, clip="none")
    return config
