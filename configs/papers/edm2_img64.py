"""EDM2 on ImageNet at 64x64 (Karras et al. 2024).

    python -m experiments.train --config=configs/papers/edm2_img64.py:S --workdir=runs/edm2_img64

Data: TFDS's `imagenet_resized/64x64`; the paper's own crops differ a little. The paper is
"Analyzing and improving the training dynamics of diffusion models". Settings: its tables 3 and 6,
and the presets of the authors' train_edm2.py. Class-conditional, batches of 2048, float16. FID is
that of table 3 with NFE 63, for the best length of the average (also in the authors'
generate_images.py). Hardware: the authors' README recommends 32 or more A100, and states no time.

Variants, with parameters, training images and FID:

    S     280 million, 1.07 billion images, FID 1.58
    M     498 million, 2.15 billion images, FID 1.43
    L     778 million, 1.07 billion images, FID 1.33
    XL    1.12 billion, 0.67 billion images, FID 1.33
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.papers._edm2 import edm2
from configs.papers._published import published

VARIANTS = {"S": 1024, "M": 2048, "L": 1024, "XL": 640}  # training images in units of 2^20


def get_config(name: str = "S") -> ConfigDict:
    """Return the config of a size.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    config = published("imagenet_resized/64x64", image_size=64, channels=3, num_classes=1000)
    return edm2(config, name, VARIANTS, decay_from=35_000, law=(-0.8, 1.6))
