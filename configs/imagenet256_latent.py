r"""Latent diffusion of ImageNet 256x256: DiT-XL/2 (Peebles & Xie 2023) on 32x32x4 latents.

    python -m experiments.plan --config=configs/imagenet256_latent.py:flow --topology=v5e:16x16
    python -m experiments.encode --workdir=runs/sd_vae --config.data.name=imagenet2012 --half \
        --out=imagenet256.npz
    python -m experiments.train --config=configs/imagenet256_latent.py:flow \
        --config.data.path=imagenet256.npz --config.latent.autoencoder=runs/sd_vae \
        --workdir=runs/imagenet256

Data: runs/sd_vae is an autoencoder for 256x256 images: that of Stable Diffusion, by
experiments.import_weights, or your own. The latents are made once; as float16 they are 21 GB, which
training keeps in memory. Their shape is stated here, so `plan` needs no data. Time: for GPUs
and pods; batch, learning rate, weight decay and EMA are those of the paper (its EMA of 0.9999 a
step at batch 256 has a half-life of 1.8 million images).

Variants: ddpm, vp, subvp, ve, edm, flow; each also with ',B', ',L' or ',S', the smaller networks of
the paper.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import latents
from configs.base import base, network, variant
from diffusion_jax.core.errors import unknown
from diffusion_jax.models.dit import SIZES


def get_config(name: str = "flow") -> ConfigDict:
    """Return the config of a variant and a size of DiT.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow, and after a comma the size, a key of SIZES, as in
        'flow,B'; without a size it is XL.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, _, size = name.partition(",")
    if (size := size or "XL") not in SIZES:
        raise unknown("size", size, SIZES)
    config = latents(variant(base(), name or "flow"))
    config.data.update(image_size=32, channels=4, num_classes=1000, batch_size=256)
    config.model = network("dit.DiT", patch=2, dtype="bfloat16", **SIZES[size])
    config.optimizer.update(learning_rate=1e-4, warmup=0, schedule="constant", b2=0.999)
    config.ema.halflives = (1_800_000,)
    config.training.update(steps=400_000, steps_per_call=10, log_every=100)
    config.training.update(eval_every=5000, sample_every=5000, checkpoint_every=5000)
    config.sampler.update(nfe=50, guidance=1.5)
    return config
