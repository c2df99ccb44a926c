"""Improved DDPM on CIFAR-10 (Nichol & Dhariwal 2021).

    python -m experiments.train --config=configs/papers/iddpm_cifar10.py --workdir=runs/iddpm

Data: TFDS's `cifar10`. The paper is "Improved denoising diffusion probabilistic models". Settings:
its appendix A, and the flags in the README of the authors' repository. Unconditional, 50 million
parameters, 500,000 steps of 128 images. Hardware and time: the paper states none for this model.

Variants, with FID and bits per dimension of table 2 (500,000 steps, 4000 ancestral steps), which
were not verified:

    hybrid    cosine schedule, L_hybrid                        FID 3.19, 3.17 bits
    simple    cosine schedule, L_simple, fixed variance        FID 3.05, 3.26 bits
    linear    linear schedule, L_hybrid                        FID 3.07, 3.26 bits
    vlb       cosine schedule, L_vlb, loss-aware times         FID 11.47, 2.94 bits
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run
from diffusion_jax.core.errors import unknown

VARIANTS = {
    # name: (betas, objective, variance)
    "hybrid": ("cosine", "learned_variance.hybrid(steps=4000)", "learned"),
    "simple": ("cosine", "denoising.ddpm(steps=4000)", "large"),
    "linear": ("linear", "learned_variance.hybrid(steps=4000)", "learned"),
    "vlb": ("cosine", "learned_variance.vlb(steps=4000)", "learned"),
}


def get_config(name: str = "hybrid") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    betas, objective, variance = VARIANTS[name]
    config = published()
    config.conditional = False
    config.process = f"discrete.ddpm(betas='{betas}', steps=4000)"
    # their network receives 1000 i / 4000, with i from 0
    inputs = "noise_input='time', input_scale=False, time_shift=-0.00025"
    config.parameterization, config.objective = f"eps({inputs})", objective
    config.model = network(
        "unet.UNet",
        width=128,
        multipliers=(1, 2, 2, 2),
        blocks=3,
        attention=(16, 8),
        head_width=64,
        dropout=0.3,
        updown="conv_centred",
        norm=(32, 1e-5),
        noise_embedding="adm",
        learn_variance=variance == "learned",
    )
    config.optimizer.learning_rate = 1e-4
    config.sampler.update(
        name=f"ancestral.ddpm(variance='{variance}')", grid="linspace(steps=4000)", nfe=4000
    )
    return average(run(config, steps=500_000, batch_size=128), 0.9999)
