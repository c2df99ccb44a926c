r"""A folder of your own images.

    python -m experiments.train --config=configs/folder.py --config.data.path=FOLDER \
        --workdir=runs/mine
    python -m experiments.train --config=configs/folder.py:edm,64 --config.data.path=FOLDER \
        --workdir=runs/mine64

Data: the images are cropped to squares and resized; subfolders are classes (docs/data.md). Time:
the network is chosen by the size of the images, for one or two CPU cores. 600 emoji at 32x32 show
objects after 1,000 steps, five minutes of one free core of an AMD EPYC. After some steps `train`
forecasts when first shapes are to be expected on this machine, and whether that is too long.

Variants: ddpm, iddpm, vp, subvp, ve, edm (the default), flow; each also with a size in pixels:
',16', ',32' (the default), ',64', ',128', ',256'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import IMAGE_VARIANTS, base, image_variant, network
from diffusion_jax.assembly.specs import with_args
from diffusion_jax.core.errors import unknown

VARIANTS = IMAGE_VARIANTS

SIZES = {
    # pixels: (options of the network, steps, steps to first shapes)
    16: ({"stem": 1, "width": 32, "multipliers": (1, 2)}, 3000, 1000),
    32: ({"stem": 2, "width": 32, "multipliers": (1, 2)}, 3000, 1000),
    64: ({"stem": 4, "width": 48, "multipliers": (1, 2)}, 8000, 2500),
    128: ({"stem": 4, "width": 64, "multipliers": (1, 2, 2)}, 20_000, 6000),
    256: ({"stem": 8, "width": 64, "multipliers": (1, 2, 2)}, 40_000, 12_000),
}


def get_config(name: str = "edm") -> ConfigDict:
    """Return the config of a variant, for a size of the images.

    Args:
      name: ddpm, iddpm, vp, subvp, ve, edm or flow, and after a comma the side of the images in
        pixels, a key of SIZES, as in 'edm,64'; without it it is 32.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, _, pixels = name.partition(",")
    size = int(pixels) if pixels.isdecimal() else 0 if pixels else 32
    if size not in SIZES:
        raise unknown("size", pixels, map(str, SIZES))
    options, steps, first_shapes = SIZES[size]
    config = base()
    config.data.update(name="folder", image_size=size, batch_size=32)
    config.model = network("unet.UNet", blocks=2, attention=(8,), head_width=32, **options)
    config = image_variant(config, name or "edm")
    config.optimizer.update(learning_rate=1e-3, warmup=100)
    config.training.update(
        steps=steps,
        eval_every=500,
        sample_every=500,
        checkpoint_every=500,
        first_shapes=first_shapes,
    )
    config.ema.halflives = (5_000,)
    config.sampler.nfe = 35
    if name == "ve":
        # as far as images are apart
        config.process = with_args(config.process, sigma_max=100.0 * size / 32)
    return config
