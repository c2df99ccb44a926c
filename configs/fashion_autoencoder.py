r"""An autoencoder of Fashion-MNIST, from 28x28 to 7x7x4, for configs/fashion_latent.py.

    python -m experiments.train --config=configs/fashion_autoencoder.py \
        --config.data.path=FOLDER --workdir=runs/fashion_ae

Data: the idx files in FOLDER, or without it TFDS's `fashion_mnist`. Time: `light` (the default)
takes eight minutes on two CPU cores; `full` is for an accelerator.

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
    config.data.name = "fashion_mnist"
    config.data.batch_size = 32
    config.optimizer.update(learning_rate=1e-3)
    config.training.update(steps=5000, eval_every=1000, sample_every=1000, checkpoint_every=1000)
    config.ema.halflives = (5_000,)
    if size == "light":  # a space-to-depth stem: the network works at 14x14 and 7x7
        return autoencoder(config, name, **SMALL_KL)
    config.data.batch_size = 256
    config.training.update(
        steps=20_000, steps_per_call=10, eval_every=2000, sample_every=2000, checkpoint_every=2000
    )
    return autoencoder(
        config, name, width=64, multipliers=(1, 2, 4), blocks=2, norm=(32, 1e-6), dtype="bfloat16"
    )
