"""DDPM on CIFAR-10 (Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models").

    python -m experiments.train --config=configs/papers/ddpm_cifar10.py --workdir=runs/ddpm

Data: TFDS's `cifar10`. Settings: appendix B, and the authors' scripts/run_cifar.py. Unconditional,
35.7 million parameters, 800,000 steps of 128 images; FID 3.17 (table 1) with 1000 ancestral steps.
Hardware and time: a TPU v3-8 at 21 steps a second, 10.6 hours (appendix B).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network, variant
from configs.papers._published import average, published, run


def get_config() -> ConfigDict:
    """Return the config of the paper's only model of CIFAR-10."""
    config = variant(published(flip=True), "ddpm")
    config.conditional = False
    # their steps count from 0, and their network receives the image as it is
    config.parameterization = "eps(noise_input='time', input_scale=False, time_shift=-0.001)"
    config.model = network(
        "unet.UNet",
        width=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        attention=(16,),
        head_width=None,
        dropout=0.1,
        scale_shift=False,
        norm=(32, 1e-6),
    )
    config.optimizer.update(learning_rate=2e-4, warmup=5000, clip=1.0)
    config.sampler.update(name="ancestral.ddpm(variance='large')", grid="trailing", nfe=1000)
    return average(run(config, steps=800_000, batch_size=128), 0.9999)
