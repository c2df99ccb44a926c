"""CelebA faces, 64x64 in color, without labels.

    python -m experiments.train --config=configs/celeb_a.py:vp,full --workdir=runs/celeb_a

Data: TFDS's `celeb_a`. Time: `light` (the default) is sized for a look on a CPU, hours; `full` for
an accelerator.

Variants: ddpm, iddpm, vp, subvp, ve, edm, flow; each also with ',full'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import cifar10
from configs.base import IMAGE_VARIANTS, image_variant, network, split_size
from diffusion_jax.assembly.specs import with_args

VARIANTS = IMAGE_VARIANTS


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, iddpm, vp, subvp, ve, edm or flow, and after a comma the size, light or full, as
        in 'edm,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    config = cifar10.get_config(name)
    config.data.update(name="celeb_a", image_size=64)
    config.conditional = False
    name, size = split_size(name)
    if size == "light":
        config.model = network(
            "unet.UNet", stem=4, width=64, multipliers=(1, 2), attention=(8,), head_width=32
        )
    else:
        config.model = network(
            "unet.UNet",
            width=128,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention=(16, 8),
            dropout=0.1,
            updown="resblock",
            dtype="bfloat16",
        )
        config.data.batch_size = 256
    config = image_variant(config, name)
    if name == "ve":
        # 90 for images in [0, 1] (Song & Ermon 2020)
        config.process = with_args(config.process, sigma_max=180.0)
    return config
