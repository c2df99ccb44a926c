"""DDPM++ under the sub-VP SDE on CIFAR-10 (Song et al. 2021, score_sde).

    python -m experiments.train --config=configs/papers/ddpmpp_subvp.py --workdir=runs/ddpmpp_subvp

Data: TFDS's `cifar10`. The paper is "Score-based generative modeling through stochastic
differential equations". Settings: its appendix H, and the authors'
configs/subvp/cifar10_ddpmpp_continuous.py and _deep_continuous.py. Unconditional, batches of 128.
FID is that of table 3 with 1000 steps of Euler-Maruyama, and bits per dimension those of table 2.
Hardware and time: the paper states none for this model.

Variants: none, 61.8 million parameters and 1.3 million steps (FID 2.61, 3.02 bits); deep, 106.6
million parameters and 950,000 steps (FID 2.41, 2.99 bits).

The data end of training, t = 1e-5, is also that of sampling; theirs ends at 1e-3.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.papers import ddpmpp_vp


def get_config(name: str = "") -> ConfigDict:
    """Return the config of a depth.

    Args:
      name: '', or 'deep' with twice the residual blocks.

    Raises:
      UserError: for another name.
    """
    config = ddpmpp_vp.get_config(name)
    config.process = "schedules.SubVP(beta_min=0.1, beta_max=20.0, t_min=1e-05)"
    return config
