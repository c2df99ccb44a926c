"""Handwritten digits by JiT (Li & He 2025): few large patches, prediction of the clean image.

    python -m experiments.train --config=configs/digits_jit.py:x0 --workdir=runs/digits_jit

Data: embedded in the package. Time: about five minutes on two CPU cores. A digit of 8x8 pixels is
four patches of 4x4, as an image of 256 pixels is 256 patches of 16.

Variants: x0, eps, velocity: what the network predicts. The loss is that of the velocity in all of
them, so that they can be compared (table 2 of the paper).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, jit, network

VARIANTS = ("x0", "eps", "velocity")


def get_config(name: str = "x0") -> ConfigDict:
    """Return the config of a prediction.

    Args:
      name: x0, eps or velocity.

    Raises:
      UserError: for another name.
    """
    config = jit(base(), prediction=name)
    config.model = network(
        "dit.DiT",
        patch=4,
        width=96,
        depth=6,
        heads=6,
        noise_embedding="adm_plain",
        rms_norm=True,
        qk_norm="rms",
        swiglu=True,
        rope=True,
        bottleneck=8,
        registers=4,
        registers_from=2,
        class_registers=True,
    )
    config.optimizer.update(learning_rate=2e-3, b2=0.95)
    config.training.update(steps=2000, eval_every=500, sample_every=500, checkpoint_every=500)
    config.sampler.guidance = 1.5
    return config
