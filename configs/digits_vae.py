"""A variational autoencoder of handwritten digits, 8x8.

    python -m experiments.train --config=configs/digits_vae.py:gaussian --workdir=runs/digits_vae

Data: embedded in the package. Time: seconds on two CPU cores.

Variants: gaussian, bernoulli, logistic, powerful, as in configs/mnist_vae.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import VAES, vae
from configs.base import base

VARIANTS = VAES


def get_config(name: str = "gaussian") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: gaussian, bernoulli, logistic or powerful: what the decoder's output means.

    Raises:
      UserError: for an unknown variant.
    """
    config = base()
    config.training.update(
        steps=2000, log_every=100, eval_every=500, sample_every=1000, checkpoint_every=1000
    )
    config.optimizer.update(learning_rate=1e-3, clip=0.0)
    return vae(config, name, latent=8, hidden=(256, 128))
