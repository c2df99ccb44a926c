r"""MNIST, 28x28, 10 classes.

    python -m experiments.train --config=configs/mnist.py:vp \
        --config.data.path=FOLDER_OF_IDX_FILES --workdir=runs/mnist
    python -m experiments.train --config=configs/mnist.py:vp,full --workdir=runs/mnist_full

Data: the idx files, or without data.path TFDS's `mnist`. Time: `light` (the default) is sized for
two CPU cores and an hour, `full` for an accelerator.

Variants: ddpm, iddpm, vp, subvp, ve, edm, flow; each also with ',full'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import IMAGE_VARIANTS, base, image_variant, network, split_size
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
    name, size = split_size(name)
    config = base()
    config.data.name = "mnist"
    if size == "light":  # a space-to-depth stem: the network works at 14x14 and 7x7
        config.model = network(
            "unet.UNet",
            stem=2,
            width=32,
            multipliers=(1, 2),
            blocks=1,
            attention=(7,),
            head_width=32,
        )
        config.optimizer.learning_rate = 1e-3
        config.training.steps = 2000
        config.ema.halflives = (20_000,)
    else:
        config.model = network(
            "unet.UNet",
            width=96,
            multipliers=(1, 2, 2),
            attention=(14, 7),
            dropout=0.1,
            dtype="bfloat16",
        )
        config.optimizer.learning_rate = 4e-4
        config.optimizer.warmup = 1000
        config.data.batch_size = 512
        config.training.update(steps=20_000, steps_per_call=10)
        config.training.eval_every = config.training.sample_every = (
            config.training.checkpoint_every
        ) = 2000
        config.ema.halflives = (250_000,)
    config = image_variant(config, name)
    config.sampler.guidance = 1.5
    if name == "ve":
        # largest distances: MNIST 33, Fashion-MNIST 45
        config.process = with_args(config.process, sigma_max=45.0)
    return config
