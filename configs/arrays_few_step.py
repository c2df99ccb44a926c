r"""Few-step models of arrays of any shape: vectors, series, images and volumes of numbers.

    python -m experiments.few_step --recipe=configs/arrays_few_step.py --images=FILE.npz \
        --methods=cd,meanflow --workdir=runs/few_step_arrays
    python -m experiments.train --config=configs/arrays_few_step.py:meanflow \
        --config.data.path=FILE.npz --workdir=runs/meanflow

Data: a file as for configs/arrays.py, whose shape chooses the network. Time: for one or two CPU
cores; a step of MeanFlow or of a consistency model costs two to three times one of the teacher.

Variants: teacher, a diffusion model; cd, ct, ict, ect, sct, scd, meanflow, imf. cd and scd are
distilled from the teacher (config.distill.teacher); ect and sct start from its weights
(config.init_from).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import arrays
from configs.base import FEW_STEP, few_step

TEACHER = "runs/few_step_arrays/teacher"
VARIANTS = ("teacher", *FEW_STEP)


def get_config(name: str = "cd") -> ConfigDict:
    """Return the config of a variant, whose network the shape of the data will choose.

    Args:
      name: teacher, the diffusion model, or a method: cd, ct, ict, ect, sct, scd, meanflow or imf.

    Raises:
      UserError: for an unknown variant.
    """
    config = few_step(arrays.get_config("edm"), name, TEACHER)
    if config.distill.teacher or config.init_from:
        config.optimizer.learning_rate /= 2
        config.training.steps //= 2
    return config
