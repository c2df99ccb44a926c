"""Fashion-MNIST, 28x28: MNIST's presets on another set. Variants and sizes as in configs/mnist.py.

python -m experiments.train --config=configs/fashion_mnist.py:flow --config.data.path=FOLDER_OF_IDX_FILES --workdir=runs/fashion
"""

from __future__ import annotations

from configs import mnist

VARIANTS = mnist.VARIANTS


def get_config(name: str = "vp"):
    config = mnist.get_config(name)
    config.data.name = "fashion_mnist"
    return config
