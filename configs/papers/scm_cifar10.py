r"""Continuous-time consistency models, sCM, on CIFAR-10 (Lu & Song 2025).

    python -m experiments.train --config=configs/papers/scm_cifar10.py:teacher \
        --workdir=runs/scm_teacher
    python -m experiments.train --config=configs/papers/scm_cifar10.py:sct --workdir=runs/sct

Data: TFDS's `cifar10`. The paper is "Simplifying, stabilizing and scaling continuous-time
consistency models". Settings: its appendix G; it has no public program, and they were compared with
one that reproduces it (V. S. Mathew, 2026). The DDPM++ of EDM with adaptive double normalization
and EDM's augmentation labels, unconditional, 60.1 million parameters, 400,000 steps of 512 images.
FID with one evaluation and with two (table 1), whose second time is 1.1. Hardware and time: the
paper states none for this data set.

Variants: teacher, a diffusion model under TrigFlow with EDM's settings and augmentation, FID 2.15
(NFE 35); sct, which is trained from the teacher's weights, FID 2.85 and 2.06 (2.97 and 2.06 in the
first version of the paper); scd, which is distilled from it, FID 3.66 and 2.52.
"""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import published, radam, run
from diffusion_jax.core.errors import unknown

TEACHER = "runs/scm_teacher"
LAW = "time=times.lognormal(-1.0, 1.4), sigma_data=0.5, warmup=0.025, c=0.1, learned_weight=True"
GRID = f"levels(levels=({0.5 * math.tan(1.1)!r},))"  # the angle 1.1, as sigma / alpha
VARIANTS = {
    # name: (objective, dropout)
    "teacher": ("denoising.edm(p_mean=-1.2, p_std=1.2, sigma_data=0.5)", 0.13),
    "sct": (f"consistency.continuous({LAW})", 0.2),
    "scd": (f"consistency.continuous_distillation({LAW})", 0.0),
}


def get_config(name: str = "sct") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: a key of VARIANTS.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    teacher = name == "teacher"
    config = published(flip=not teacher, augment=0.12 if teacher else 0.0)
    config.conditional, config.process = False, "schedules.TrigFlow(sigma_data=0.5)"
    # the network receives the angle itself
    angle = f"noise_input='time', time_scale={math.pi / 2!r}"
    config.parameterization = f"edm(sigma_data=0.5, {angle})"
    config.objective, dropout = VARIANTS[name]
    config.model = network("ncsnpp.NCSNpp", dropout=dropout, double_norm=True, augment=9)
    if teacher:
        config.optimizer.update(learning_rate=1e-3, warmup=19_531)
        config.sampler.update(name="ode.edm_heun", grid="karras", nfe=35, clip="none")
    else:
        config.model.uncertainty = 128  # of the learned weighting
        radam(config, 1e-4, b2=0.99)
        config.init_from = TEACHER if name == "sct" else ""
        config.distill.teacher = TEACHER if name == "scd" else ""
        config.sampler.update(name="few_step.multistep", grid=GRID, nfe=2, clip="none")
    config.ema.update(halflives=(500_000,), ramp=0.05)
    return run(config, steps=400_000, batch_size=512)
