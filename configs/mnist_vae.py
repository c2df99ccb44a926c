r"""A variational autoencoder of MNIST, 28x28.

    python -m experiments.train --config=configs/mnist_vae.py:gaussian \
        --config.data.path=FOLDER --workdir=runs/mnist_vae
    ... --config.objective='autoencoding.elbo(likelihood=autoencoding.gaussian(), beta=4.0)'
    ... --config.objective='autoencoding.iwae(likelihood=autoencoding.bernoulli(), samples=8)'

Data: the idx files, or without data.path TFDS's `mnist`; encoder and decoder are conditioned on the
labels. Time: `light` (the default), a perceptron, takes minutes on two CPU cores, `powerful` about
ten; `full` is convolutional, for an accelerator.

Variants, by p(x | z): gaussian (of one learned width), bernoulli, logistic (of 256 gray levels),
powerful (logistic, and every pixel sees those before it: the decoder with which the latent may be
ignored); each also with ',full'.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import VAES, vae
from configs.base import base, split_size

VARIANTS = VAES


def get_config(name: str = "gaussian") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: gaussian, bernoulli, logistic or powerful: what the decoder's output means; and after a
        comma the size, light or full, as in 'gaussian,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name)
    config = base()
    config.data.name = "mnist"
    config.training.update(
        steps=8000, log_every=100, eval_every=2000, sample_every=4000, checkpoint_every=2000
    )
    config.optimizer.update(learning_rate=1e-3, clip=0.0)  # a sum over pixels has large gradients
    config.ema.halflives = (20_000,)
    if size == "light":
        if name == "powerful":
            config.training.update(steps=2000, eval_every=1000)
        return vae(config, name, latent=16, hidden=(512, 256))
    config.data.batch_size = 256
    config.training.steps = 50_000
    return vae(config, name, latent=32, width=64, multipliers=(1, 2, 2), blocks=2)
