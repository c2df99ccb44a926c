r"""Few-step models of handwritten digits, 8x8, for one, two or four evaluations.

    python -m experiments.few_step \
        --workdir=runs/few_step                          (all of them, and the table)
    python -m experiments.train --config=configs/digits_few_step.py:teacher \
        --workdir=runs/few_step/teacher
    python -m experiments.train --config=configs/digits_few_step.py:cd --workdir=runs/few_step/cd

Data: embedded in the package. Time: two to nine minutes of a CPU core for each method.

Variants: teacher, a diffusion model; cd, ct, ict, ect, sct, scd, meanflow, imf. cd and scd are
distilled from the teacher (config.distill.teacher); ect and sct start from its weights
(config.init_from).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import FEW_STEP, base, few_step, network
from diffusion_jax.assembly.specs import with_args

TEACHER = "runs/few_step/teacher"
VARIANTS = ("teacher", *FEW_STEP)

STEPS = {
    "cd": 400,
    "ct": 2400,
    "sct": 1500,
    "scd": 1500,
    "ict": 1000,
    "meanflow": 1000,
    "imf": 1000,
}  # from scratch needs more


def get_config(name: str = "cd") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: teacher, the diffusion model, or a method: cd, ct, ict, ect, sct, scd, meanflow or imf.

    Raises:
      UserError: for an unknown variant.
    """
    config = base()
    config.model = network(
        "unet.UNet", width=32, multipliers=(1, 2), blocks=1, attention=(4,), head_width=32
    )
    config.optimizer.learning_rate = 2e-3
    config.training.update(
        steps=STEPS.get(name, 600), eval_every=200, sample_every=200, checkpoint_every=200
    )
    config.data.batch_size = 64 if name in ("ct", "sct", "scd") else 128
    config.sampler.guidance = 1.5
    config = few_step(config, name, TEACHER)
    if config.process == "schedules.EDM()":  # to twice the largest distance in the data
        config.process = with_args(config.process, sigma_max=20.0)
    if config.distill.teacher or config.init_from:
        config.optimizer.learning_rate = 1e-3
    return config
