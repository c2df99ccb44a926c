"""The sizes of EDM2 and their training, which its recipes share."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from configs.base import network
from configs.papers._published import run
from diffusion_jax.core.errors import unknown
from diffusion_jax.models.edm2 import SIZES

RATES = {"XS": 0.012, "S": 0.01, "M": 0.009, "L": 0.008, "XL": 0.007, "XXL": 0.0065}
SMALL = ("XS", "S")  # without dropout
BATCH, WARMUP = 2048, 10_000_000


def edm2(
    config: ConfigDict,
    size: str,
    images: dict[str, int],
    *,
    decay_from: int,
    law: tuple[float, float],
    data_std: float = 0.5,
) -> ConfigDict:
    """Make the config one of EDM2's models (Karras et al. 2024, tables 4 and 6).

    Args:
      config: the config of the data, which is changed in place and returned.
      size: a key of `images`.
      images: training images of each size, in units of 2^20.
      decay_from: steps after which the learning rate decays as an inverse square root.
      law: P_mean and P_std, of the noise levels of data with a standard deviation of 0.5.
      data_std: the standard deviation of our data. All noise levels are in proportion to it.

    Raises:
      UserError: for another size.
    """
    if size not in images:
        raise unknown("variant", size, images)
    larger = data_std / 0.5
    mean = law[0] + math.log(larger)
    config.process = f"schedules.EDM(sigma_min={0.002 * larger}, sigma_max={80.0 * larger})"
    config.parameterization = f"edm(sigma_data={data_std})"
    config.objective = f"uncertainty.edm2(p_mean={mean!r}, p_std={law[1]}, sigma_data={data_std})"
    dropout = 0.0 if size in SMALL else 0.1
    options = {"dropout": dropout, "uncertainty": 128, "dtype": "float16"} | SIZES[size]
    config.model = network("edm2.EDM2UNet", **options)
    # their program's: a scale of 1, and numbers of the gradient that are not finite become 0
    config.training.loss_scale = "fixed(scale=1.0, replace=True, infinity=0.0)"
    config.optimizer.update(
        learning_rate=RATES[size], warmup=WARMUP // BATCH, schedule="rsqrt", b2=0.99
    )
    config.optimizer.decay_from = decay_from
    # two power averages, from which one of any length is made after training
    config.ema.update(halflives=(), powers=(0.05, 0.1), snapshot_every=2**23 // BATCH)
    config.sampler.update(name="ode.edm_heun", grid="karras", nfe=63, clip="none")
    config.sampler.ema = "power_0.1"
    return run(config, steps=images[size] * 2**20 // BATCH, batch_size=BATCH, every=4096)
