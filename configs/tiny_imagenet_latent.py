r"""Latent diffusion of a folder of 64x64 images: a U-Net on 16x16x4 (light), DiT on 8x8x4 (full).

    python -m experiments.train_latent --config=configs/tiny_imagenet_latent.py:flow,full \
        --images=FOLDER --workdir=runs/tiny

Data: a folder of images, such as Tiny ImageNet. Time: `light` (the default) is sized for a CPU,
hours; `full` for an accelerator.

Variants: ddpm, vp, subvp, ve, edm, flow; each also with ',full'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import latents
from configs.base import base, network, split_size, variant
from diffusion_jax.assembly.specs import with_args
from diffusion_jax.models.dit import SIZES


def get_config(name: str = "flow") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow, and after a comma the size, light or full, as in
        'flow,full', which is that of the autoencoder as well; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name or "flow")
    kind = "adversarial,full" if size == "full" else "plain"
    config = latents(variant(base(), name), recipe=f"configs/tiny_imagenet_autoencoder.py:{kind}")
    config.optimizer.update(learning_rate=4e-4, warmup=500)
    if size == "light":
        config.model = network(
            "unet.UNet", width=64, multipliers=(1, 2), blocks=1, attention=(8,), head_width=32
        )
        config.training.update(
            steps=10_000, eval_every=1000, sample_every=1000, checkpoint_every=1000
        )
        config.ema.halflives = (50_000,)
    else:
        config.model = network("dit.DiT", patch=1, dtype="bfloat16", **SIZES["B"])
        config.data.batch_size = 512
        config.training.update(
            steps=200_000,
            steps_per_call=10,
            eval_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
        )
        config.ema.halflives = (500_000,)
    config.sampler.guidance = 2.0
    if name == "ve":
        # two latents of unit variance in D dimensions are sqrt(2 D) apart, and the most distant
        # half as much again
        config.process = with_args(config.process, sigma_max=68.0 if size == "light" else 34.0)
    return config
