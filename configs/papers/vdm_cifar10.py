"""Variational diffusion models on CIFAR-10 (Kingma, Salimans, Poole & Ho 2021).

    python -m experiments.train --config=configs/papers/vdm_cifar10.py --workdir=runs/vdm

Data: TFDS's `cifar10`, without augmentation. The paper is "Variational diffusion models". Settings:
its appendix B, and configs/cifar10.py of the authors' repository. Unconditional, 30.6 million
parameters, 10,000,000 steps of 128 images; 2.65 bits per dimension (table 1; 2.637 for the authors'
checkpoint, by their README), FID 7.41 (not verified). Hardware and time: the program was run on TPU
v3; the repository states no time for this model.

Variants: shape, the schedule of the paper, whose ends and shape are learned; ends, that of the
authors' program for this model, with a log-SNR that is linear between learned ends.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run
from diffusion_jax.core.errors import unknown

VARIANTS = {
    # name: (arguments of the objective, grid)
    "shape": ("learn_ends=True, learn_shape=True", "learned"),
    "ends": ("learn_ends=True", "uniform"),
}
CLOCK = (-20.0, 10.0)  # what the ends can become
START = (-13.3, 5.0)


def get_config(name: str = "shape") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    learns, grid = VARIANTS[name]
    config = published()
    config.conditional = False
    config.process = f"schedules.VDM(gamma_min={CLOCK[0]}, gamma_max={CLOCK[1]})"
    # their network receives gamma in units of the ends at the start
    unit = START[1] - START[0]
    scale, shift = (CLOCK[1] - CLOCK[0]) / unit, (CLOCK[0] - START[0]) / unit
    config.parameterization = (
        f"eps_skip(noise_input='time', time_scale={scale!r}, time_shift={shift!r})"
    )
    config.objective = f"vdm.vdm({learns}, gammas={START})"
    config.model = network(
        "unet.UNet",
        width=128,
        multipliers=(1,),
        blocks=32,
        attention=(),
        head_width=None,
        dropout=0.1,
        scale_shift=False,
        norm=(32, 1e-6),
        input_fourier=(7, 8),
    )
    config.optimizer.update(learning_rate=2e-4, warmup=100, weight_decay=0.01, b1=0.9, b2=0.99)
    config.sampler.update(name="ancestral.ddpm(variance='small')", grid=grid, nfe=1000)
    return average(run(config, steps=10_000_000, batch_size=128), 0.9999)
