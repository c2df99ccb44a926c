"""Handwritten digits, 8x8, 10 classes.

    python -m experiments.train --config=configs/digits.py:vp --workdir=runs/digits

Data: embedded in the package. Time: about three minutes on two CPU cores.

Variants: ddpm, iddpm, vdm (a learned noise schedule), vp, subvp, ve, edm, flow.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import IMAGE_VARIANTS, base, image_variant, network
from diffusion_jax.assembly.specs import with_args

# process, parameterization, objective, sampler and grid, as in configs/base.py; the ends of the
# process are those of what can be learned (Kingma et al. 2021)
VDM = (
    "schedules.VDM(gamma_min=-20.0, gamma_max=10.0)",
    "eps()",
    "vdm.vdm(learn_ends=True, learn_shape=True, gammas=(-13.3, 5.0))",
    "ancestral.ddim",
    "auto",
)
VARIANTS = IMAGE_VARIANTS | {"vdm": VDM}


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: ddpm, iddpm, vdm, vp, subvp, ve, edm or flow.

    Raises:
      UserError: for an unknown variant.
    """
    config = base()
    config.model = network(
        "unet.UNet", width=32, multipliers=(1, 2), blocks=1, attention=(4,), head_width=32
    )
    config = image_variant(config, name, VARIANTS)
    config.optimizer.learning_rate = 2e-3
    config.training.update(steps=600, eval_every=300, sample_every=300, checkpoint_every=300)
    config.sampler.guidance = 1.5
    if name == "vdm":
        config.optimizer.clip = 0.0  # as in the paper; most of the gradient is the schedule's
    if name == "ve":
        # the largest distance in the data is 9.6
        config.process = with_args(config.process, sigma_max=10.0)
    return config
