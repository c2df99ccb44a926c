r"""An autoencoder of CIFAR-10, from 32x32 in color to 8x8x4.

    python -m experiments.train --config=configs/cifar10_autoencoder.py:adversarial,full \
        --workdir=runs/cifar10_ae

Data: TFDS's `cifar10`. Time: `light` (the default) is sized for a look on a CPU, hours; `full` for
an accelerator.

Variants: plain, adversarial (with a PatchGAN); each also with ',full'. To compare images by LPIPS
(experiments.get_weights lpips):
--config.objective="autoencoding.reconstruction(features='lpips')"
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
    config.data.name = "cifar10"
    config.data.flip = True
    config.optimizer.update(learning_rate=1e-3)
    config.ema.halflives = (10_000,)
    if size == "light":
        config.data.batch_size = 64
        config.training.update(
            steps=3000, eval_every=1000, sample_every=1000, checkpoint_every=1000
        )
        return autoencoder(config, name, **SMALL_KL)
    config.data.batch_size = 256
    config.optimizer.learning_rate = 4e-4
    config.training.update(
        steps=100_000, steps_per_call=10, eval_every=5000, sample_every=5000, checkpoint_every=5000
    )
    return autoencoder(
        config, name, width=64, multipliers=(1, 2, 4), blocks=2, norm=(32, 1e-6), dtype="bfloat16"
    )
