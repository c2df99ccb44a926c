r"""Points in the plane and a small MLP, for work on the mathematics without images.

    python -m experiments.train --config=configs/toy.py:vp --config.data.name=checkerboard \
        --workdir=runs/toy

Data: drawn by the package; data.name is mixture, rings, checkerboard or two_moons. Time: seconds on
a CPU.

Variants: ddpm, vp, subvp, ve, edm, flow.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, network, variant
from diffusion_jax.assembly.specs import with_args


def get_config(name: str = "vp") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow.

    Raises:
      UserError: for an unknown variant.
    """
    config = variant(base(), name)
    config.data.update(name="mixture", batch_size=512)
    config.model = network("mlp.MLP")
    config.conditional = False
    config.training.update(steps=3000, eval_every=1000, sample_every=1000, checkpoint_every=1000)
    config.sampler.clip = "none"
    if name == "ve":
        # the largest distance, 2 to 3, is in the plane only four standard deviations; ten leave
        # nothing of the data at t_max
        config.process = with_args(config.process, sigma_min=0.01, sigma_max=10.0)
    return config
