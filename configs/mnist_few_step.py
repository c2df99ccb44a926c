"""MNIST, 28x28, in one, two or four evaluations. `light` (the default) is sized for two CPU cores, `full` for an accelerator.

    python -m experiments.few_step --recipe=configs/mnist_few_step.py --workdir=runs/mnist_few_step --methods=scd,ect
    python -m experiments.few_step --recipe=configs/mnist_few_step.py --workdir=runs/mnist_full --methods=scd --size=full

Variants: teacher, a diffusion model; cd, ct, ict, ect, sct, scd, meanflow, imf; each also with ',full'.
"""

from configs import mnist
from configs.base import FEW_STEP, few_step, split_size

TEACHER = "runs/mnist_few_step/teacher"
VARIANTS = ("teacher", *FEW_STEP)


def get_config(name: str = "scd"):
    name, size = split_size(name)
    config = mnist.get_config(f"edm,{size}")  # the network, the data and the sizes of a diffusion model
    return few_step(config, name, TEACHER)
