"""Improved consistency training on CIFAR-10 (Song & Dhariwal 2024).

    python -m experiments.train --config=configs/papers/ict_cifar10.py --workdir=runs/ict

Data: TFDS's `cifar10`. The paper is "Improved techniques for training consistency models".
Settings: its table 1 and appendix A, with the network of consistency models (NCSN++). It has no
public program. Unconditional, 400,000 steps of 1024 images. FID with one evaluation and with two
(table 2; Lu & Song 2025 repeat it). Hardware: A100. Not verified: the settings and the hardware.

Variants: none, 56.4 million parameters, FID 2.83 and 2.46; deep, 97.6 million parameters by EDM's
network (more than 100 million by the README of ECT), FID 2.51 and 2.24.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, radam, run
from diffusion_jax.core.errors import unknown
from diffusion_jax.models.ncsnpp import PRESETS

DEPTHS = {"": 4, "deep": 8}  # residual blocks per level


def get_config(name: str = "") -> ConfigDict:
    """Return the config of a depth.

    Args:
      name: '', or 'deep' with twice the residual blocks.

    Raises:
      UserError: for another name.
    """
    if name not in DEPTHS:
        raise unknown("variant", name, DEPTHS)
    config = published(flip=True)
    config.conditional = False
    config.process, config.parameterization = "schedules.EDM()", "consistency(sigma_data=0.5)"
    config.objective = (
        "consistency.improved(s0=10, s1=1280, mean=-1.1, std=2.0, "
        "distance=distance.pseudo_huber(c=0.00054))"
    )
    options = {"blocks": DEPTHS[name], "dropout": 0.3, "fourier_scale": 0.02}
    config.model = network("ncsnpp.NCSNpp", **PRESETS["ncsnpp"] | options)
    config.sampler.update(
        name="few_step.multistep", grid="levels(levels=(0.821,))", nfe=2, clip="none"
    )
    config = run(radam(config, 1e-4), steps=400_000, batch_size=1024)
    return average(config, 0.99993)
