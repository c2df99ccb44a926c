"""Points in the plane, a small MLP: seconds. For work on the mathematics without images.

    python -m experiments.train --config=configs/toy.py:vp --config.data.name=checkerboard --workdir=runs/toy

data.name: mixture, rings, checkerboard, two_moons. Variants: ddpm, vp, subvp, ve, edm, flow.
"""

from __future__ import annotations

from configs.base import base, network, variant


def get_config(name: str = "vp"):
    config = variant(base(), name)
    config.data.update(name="mixture", batch_size=512)
    config.model = network("mlp.MLP")
    config.conditional = False
    config.training.update(steps=3000, eval_every=1000, sample_every=1000, checkpoint_every=1000)
    config.sampler.clip = "none"
    if name == "ve":
        # the largest distance, 2 to 3, is in the plane only four standard deviations; ten leave
        # nothing of the data at t_max
        config.process = "schedules.VE(sigma_min=0.01, sigma_max=10.0)"
    return config
