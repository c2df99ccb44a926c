r"""Latent diffusion of Fashion-MNIST: a U-Net on 7x7x4 latents.

    python -m experiments.train_latent --config=configs/fashion_latent.py:vp --images=FOLDER \
        --workdir=runs/fashion_latent

This trains the autoencoder (configs/fashion_autoencoder.py), encodes the images and trains the
diffusion model. Its last step alone:

    python -m experiments.train --config=configs/fashion_latent.py:vp \
        --config.data.path=LATENTS.npz \
        --config.latent.autoencoder=WORKDIR --workdir=runs/fashion_latent

Data: the idx files in FOLDER. Time: `light` (the default) takes about twelve minutes on two CPU
cores; `full` is for an accelerator.

Variants: ddpm, vp, subvp, ve, edm, flow; each also with ',full'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import latents
from configs.base import base, network, split_size, variant
from diffusion_jax.assembly.specs import with_args


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow, and after a comma the size, light or full, as in
        'vp,full', which is that of the autoencoder as well; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name)
    config = latents(
        variant(base(), name),
        recipe="configs/fashion_autoencoder.py:plain" + ",full" * (size == "full"),
    )
    config.model = network(
        "unet.UNet", width=48, multipliers=(1,), blocks=2, attention=(7,), head_width=16
    )
    config.data.batch_size = 64
    config.optimizer.learning_rate = 1e-3
    config.ema.halflives = (20_000,)
    config.training.update(steps=3000, eval_every=1000, sample_every=1000, checkpoint_every=1000)
    if size == "full":
        config.model.update(width=256, blocks=3, head_width=64, dropout=0.1, dtype="bfloat16")
        config.data.batch_size = 512
        config.optimizer.update(learning_rate=4e-4, warmup=1000)
        config.ema.halflives = (250_000,)
        config.training.update(
            steps=20_000,
            steps_per_call=10,
            eval_every=2000,
            sample_every=2000,
            checkpoint_every=2000,
        )
    config.sampler.guidance = 1.5
    if name == "ve":
        # two latents of unit variance in D = 196 dimensions are sqrt(2 D) apart, and the most
        # distant half as much again
        config.process = with_args(config.process, sigma_max=30.0)
    return config
