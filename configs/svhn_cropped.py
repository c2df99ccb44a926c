"""Street-view house numbers, 32x32 colour: CIFAR-10's presets, without flips (a mirrored 3 is no
digit).

    python -m experiments.train --config=configs/svhn_cropped.py:flow,full --workdir=runs/svhn

Variants and sizes as in configs/cifar10.py.
"""

from __future__ import annotations

from configs import cifar10

VARIANTS = cifar10.VARIANTS


def get_config(name: str = "vp"):
    config = cifar10.get_config(name)
    config.data.name = "svhn_cropped"
    config.data.flip = False
    return config
