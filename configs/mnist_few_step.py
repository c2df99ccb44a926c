r"""Few-step models of MNIST, 28x28, for one, two or four evaluations.

    python -m experiments.few_step --recipe=configs/mnist_few_step.py --methods=cd,meanflow \
        --workdir=runs/mnist_few_step
    python -m experiments.few_step --recipe=configs/mnist_few_step.py --size=full \
        --methods=scd --workdir=runs/mnist_full

Data: TFDS's `mnist`, or the idx files with --images=FOLDER_OF_IDX_FILES. Time: `light` (the
default) is sized for two CPU cores, `full` for an accelerator.

Variants: teacher, a diffusion model; cd, ct, ict, ect, sct, scd, meanflow, imf; each also with
',full'. The teacher is guided, and so are the models distilled from it; MeanFlow learns the guided
velocity. Sampling from them costs no more for it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import mnist
from configs.base import FEW_STEP, few_step, split_size
from diffusion_jax.assembly.specs import with_args

TEACHER = "runs/mnist_few_step/teacher"
VARIANTS = ("teacher", *FEW_STEP)
GUIDANCE = 1.5

STEPS = {
    "teacher": 1600,
    "cd": 800,
    "scd": 800,
    "ect": 1600,
    "sct": 1200,
}  # of light; those from scratch need more

SCRATCH = 2400


def get_config(name: str = "cd") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: teacher, the diffusion model, or a method: cd, ct, ict, ect, sct, scd, meanflow or imf;
        and after a comma the size, light or full, as in 'cd,full'; without a size it is light.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name)
    config = mnist.get_config(
        f"edm,{size}"
    )  # the network, the data and the sizes of a diffusion model
    config = few_step(config, name, TEACHER)
    if name in ("meanflow", "imf"):
        config.objective = with_args(config.objective, guidance=GUIDANCE)
    if size == "light":
        config.training.update(
            steps=STEPS.get(name, SCRATCH), eval_every=400, sample_every=400, checkpoint_every=200
        )
        config.data.batch_size = (
            128 if name == "teacher" else 64
        )  # whose steps cost two to three times a teacher's
    if config.distill.teacher or config.init_from:
        config.optimizer.learning_rate /= 2
    return config
