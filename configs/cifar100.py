"""CIFAR-100, 32x32 in color, 100 classes: the presets of CIFAR-10 on another data set.

    python -m experiments.train --config=configs/cifar100.py:edm,full --workdir=runs/cifar100

Data: TFDS's `cifar100`. Variants, sizes and times: as in configs/cifar10.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import cifar10

VARIANTS = cifar10.VARIANTS


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, iddpm, vp, subvp, ve, edm or flow, and after a comma the size, light or full, as
        in 'edm,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    config = cifar10.get_config(name)
    config.data.name = "cifar100"
    return config
