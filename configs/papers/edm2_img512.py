r"""EDM2 on latents of ImageNet at 512x512 (Karras et al. 2024).

    python -m experiments.train --config=configs/papers/edm2_img512.py:S \
        --config.data.path=imagenet512.npz --config.latent.autoencoder=runs/sd_vae \
        --workdir=runs/edm2_img512

Data: 64x64x4 latents of Stable Diffusion's autoencoder, which experiments.encode writes. The paper
is "Analyzing and improving the training dynamics of diffusion models". Settings: its tables 2 and
6, and the presets of the authors' train_edm2.py. Class-conditional, batches of 2048, float16. FID
is that of table 2 without guidance, with NFE 63, for the best length of the average (also in the
authors' generate_images.py). Hardware: the authors' README recommends 32 or more A100, and states
no time.

Variants, with parameters, training images and FID:

    XS    125 million, 2.15 billion images, FID 3.53
    S     280 million, 2.15 billion images, FID 2.56
    M     498 million, 2.15 billion images, FID 2.25
    L     778 million, 1.88 billion images, FID 2.06
    XL    1.12 billion, 1.34 billion images, FID 1.96
    XXL   1.52 billion, 0.94 billion images, FID 1.91

Our latents have a standard deviation of 1 and theirs of 0.5, so all noise levels are twice theirs.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.papers._edm2 import edm2
from configs.papers._published import published

# training images in units of 2^20
VARIANTS = {"XS": 2048, "S": 2048, "M": 2048, "L": 1792, "XL": 1280, "XXL": 896}


def get_config(name: str = "S") -> ConfigDict:
    """Return the config of a size.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    config = published("latents", image_size=64, channels=4, num_classes=1000)
    return edm2(config, name, VARIANTS, decay_from=70_000, law=(-0.4, 1.0), data_std=1.0)
