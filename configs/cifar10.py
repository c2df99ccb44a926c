"""CIFAR-10, 32x32 in color, 10 classes.

    python -m experiments.train --config=configs/cifar10.py:edm,full --workdir=runs/cifar10

Data: TFDS's `cifar10`. Time: `light` (the default) is sized for a look on a CPU, hours; `full`, the
network of DDPM, for an accelerator.

Variants: ddpm, iddpm, vp, subvp, ve, edm, flow; each also with ',full', ',ddpmpp' or ',ncsnpp'.
`iddpm,full` has the network and training of improved DDPM for CIFAR-10 (Nichol & Dhariwal 2021,
appendix A): dropout 0.3, a constant rate of 1e-4, batches of 128, an EMA of 0.9999 a step.
`edm,ddpmpp` has the network and training of EDM (Karras et al. 2022, table 7): DDPM++ of 55.7
million parameters, 200 million images, flips instead of their augmentation. `edm,ncsnpp` is the
same with NCSN++.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import IMAGE_VARIANTS, SIZES, base, image_variant, network, split_size
from diffusion_jax.models import ncsnpp

VARIANTS = IMAGE_VARIANTS


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, iddpm, vp, subvp, ve, edm or flow, and after a comma the size, light, full,
        ddpmpp or ncsnpp, as in 'edm,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name, (*SIZES, "ddpmpp", "ncsnpp"))
    config = base()
    config.data.name = "cifar10"
    config.data.flip = True
    config.optimizer.update(learning_rate=2e-4, warmup=1000)
    config.training.update(eval_every=1000, sample_every=1000, checkpoint_every=1000)
    if size == "light":
        config.model = network(
            "unet.UNet",
            stem=2,
            width=64,
            multipliers=(1, 2),
            blocks=2,
            attention=(8,),
            head_width=32,
        )
        config.training.steps = 20_000
        config.ema.halflives = (100_000,)
    elif size in ("ddpmpp", "ncsnpp"):
        _edm_training(config, size)
    else:
        config.model = network(
            "unet.UNet",
            width=128,
            multipliers=(2, 2, 2),
            blocks=3,
            attention=(16,),
            head_width=64,
            dropout=0.13,
            updown="resblock",
            dtype="bfloat16",
        )
        config.data.batch_size = 512
        config.training.update(
            steps=400_000,
            steps_per_call=10,
            eval_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
        )
        config.ema.halflives = (500_000,)
    if (name, size) == ("iddpm", "full"):
        config.model.update(multipliers=(1, 2, 2, 2), attention=(16, 8), dropout=0.3, updown="conv")
        config.data.batch_size = 128
        config.optimizer.update(learning_rate=1e-4, warmup=0, schedule="constant", b2=0.999)
        config.training.steps = 500_000
        config.ema.halflives = (887_000,)
    return image_variant(config, name)


def _edm_training(config: ConfigDict, size: str) -> None:
    """DDPM++ or NCSN++ (Song et al. 2021), with one attention head, and their training by EDM."""
    config.model = network(
        "unet.UNet",
        width=128,
        multipliers=(2, 2, 2),
        blocks=4,
        attention=(16,),
        decoder_attention_once=True,
        head_width=None,
        dropout=0.13,
        scale_shift=False,
        updown="resblock_projected",
        skip_scale=0.5**0.5,
        dtype="bfloat16",
    )
    if size == "ncsnpp":
        options = {"dropout": 0.13, "dtype": "bfloat16"} | ncsnpp.PRESETS["ncsnpp"]
        config.model = network("ncsnpp.NCSNpp", **options)
    config.label_dropout = 0.0
    config.data.batch_size = 512
    # AdamW without decay is Adam; the rate rises over the first 10 million images
    config.optimizer.update(
        learning_rate=1e-3, warmup=19_531, schedule="constant", clip=0.0, b2=0.999
    )
    config.training.update(
        steps=390_625,
        steps_per_call=10,
        eval_every=5000,
        sample_every=5000,
        checkpoint_every=5000,
    )
    config.ema.halflives = (500_000,)
