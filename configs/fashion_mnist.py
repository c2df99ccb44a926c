r"""Fashion-MNIST, 28x28, 10 classes: the presets of MNIST on another data set.

    python -m experiments.train --config=configs/fashion_mnist.py:flow \
        --config.data.path=FOLDER_OF_IDX_FILES --workdir=runs/fashion

Data: the idx files, or without data.path TFDS's `fashion_mnist`. Variants, sizes and times: as in
configs/mnist.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import mnist

VARIANTS = mnist.VARIANTS


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, iddpm, vp, subvp, ve, edm or flow, and after a comma the size, light or full, as
        in 'edm,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    config = mnist.get_config(name)
    config.data.name = "fashion_mnist"
    return config
