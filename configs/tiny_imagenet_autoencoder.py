r"""An autoencoder of a folder of 64x64 images in color, to 16x16x4 (light) or 8x8x4 (full).

    python -m experiments.train --config=configs/tiny_imagenet_autoencoder.py:adversarial,full \
        --config.data.path=FOLDER \
        --workdir=runs/tiny_ae

Data: a folder of images, such as Tiny ImageNet. Time: `light` (the default) takes about two hours
on two CPU cores; `full` is for an accelerator.

Variants: plain, adversarial (with a PatchGAN); each also with ',full'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import KL, SMALL_KL, autoencoder
from configs.base import base, split_size

VARIANTS = KL


def get_config(name: str = "plain") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: plain or adversarial, and after a comma the size, light or full, as in 'plain,full';
        without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name or "plain")
    config = base()
    config.data.update(name="folder", image_size=64, channels=3, flip=True)
    config.optimizer.update(learning_rate=1e-3)
    config.ema.halflives = (10_000,)
    if size == "light":
        config.data.batch_size = 32
        config.training.update(
            steps=6000, eval_every=1000, sample_every=1000, checkpoint_every=1000
        )
        return autoencoder(config, name, **SMALL_KL)
    config.data.update(batch_size=128, workers=8)
    config.optimizer.learning_rate = 2e-4
    config.training.update(
        steps=100_000, steps_per_call=10, eval_every=5000, sample_every=5000, checkpoint_every=5000
    )
    return autoencoder(
        config,
        name,
        width=128,
        multipliers=(1, 2, 2, 4),
        blocks=2,
        norm=(32, 1e-6),
        dtype="bfloat16",
    )
