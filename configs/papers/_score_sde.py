"""The networks and the training of score_sde on CIFAR-10, which its recipes share."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import average, published, run
from diffusion_jax.core.errors import unknown

DEPTHS = {"": 4, "deep": 8}  # residual blocks per level


def score_sde(
    name: str, preset: dict[str, Any], ema: float, *, numbers: int = 1, steps: int
) -> ConfigDict:
    """Return the config of an unconditional model of CIFAR-10 (Song et al. 2021, appendix H).

    Args:
      name: a key of DEPTHS.
      preset: options of the network, a value of ncsnpp.PRESETS.
      ema: rate of the average per step.
      numbers: by how much their loss is larger, where it is half the sum over an image.
      steps: steps of the shallow network; the deep one has 950,000.

    Raises:
      UserError: for another name.
    """
    if name not in DEPTHS:
        raise unknown("variant", name, DEPTHS)
    config = published(flip=True)
    config.conditional = False
    config.objective = "denoising.dsm()"
    options = {"multipliers": (1, 2, 2, 2), "blocks": DEPTHS[name], "dropout": 0.1} | preset
    config.model = network("ncsnpp.NCSNpp", **options)
    # the gradient of a larger loss is clipped and normalized at a larger scale
    config.optimizer.update(learning_rate=2e-4, warmup=5000, clip=1.0 / numbers)
    config.optimizer.eps = 1e-8 / numbers
    return average(run(config, steps=950_000 if name else steps, batch_size=128), ema)
