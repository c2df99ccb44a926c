"""CIFAR-100, 32x32 colour, 100 classes: CIFAR-10's presets on another set. Variants and sizes as in
configs/cifar10.py.

python -m experiments.train --config=configs/cifar100.py:edm,full --workdir=runs/cifar100
"""

from __future__ import annotations

from configs import cifar10

VARIANTS = cifar10.VARIANTS


def get_config(name: str = "vp"):
    config = cifar10.get_config(name)
    config.data.name = "cifar100"
    return config
