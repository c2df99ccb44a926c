"""What the recipes share: a plain optimizer, averages by their rate, cadences, latents."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from configs._autoencoders import latents
from configs.base import base


def published(data: str = "cifar10", **keys: Any) -> ConfigDict:
    """Return the config that a recipe starts from: no weight decay, no clipping, a constant rate.

    Args:
      data: the name of the data set; 'latents' for latents.
      **keys: further keys of config.data.
    """
    config = latents(base()) if data == "latents" else base()
    config.data.update(name=data, **keys)
    config.optimizer.update(clip=0.0, warmup=0, schedule="constant", b1=0.9, b2=0.999)
    config.ema.ramp = 0.0
    config.training.on_nonfinite = "skip"  # the papers' programs go on
    config.label_dropout = 0.0
    return config


def run(config: ConfigDict, steps: int, batch_size: int, every: int = 5000) -> ConfigDict:
    """Set the length of a run and how often it is judged.

    Args:
      config: the config, which is changed in place and returned.
      steps: steps of training.
      batch_size: examples in a step.
      every: steps between checkpoints, grids of samples and held-out losses.
    """
    config.data.batch_size = batch_size
    calls = math.gcd(steps, every, 10)
    config.training.update(steps=steps, steps_per_call=calls, log_every=100)
    config.training.update(checkpoint_every=every, sample_every=every, eval_every=every)
    return config


def average(config: ConfigDict, rate: float) -> ConfigDict:
    """Set the average of the parameters to one of a given rate per step.

    Args:
      config: the config, whose batch size is set; it is changed in place and returned.
      rate: r of ema <- r ema + (1 - r) params.
    """
    config.ema.halflives = (round(halflife(rate, config.data.batch_size)),)
    return config


def halflife(rate: float, batch_size: int) -> float:
    """Return the half-life in images of an average of a given rate per step.

    Args:
      rate: r of ema <- r ema + (1 - r) params.
      batch_size: images in a step.
    """
    return batch_size * math.log(2) / -math.log(rate)


def radam(config: ConfigDict, learning_rate: float, b2: float = 0.999) -> ConfigDict:
    """Set the optimizer to RAdam (Liu et al. 2020), which consistency models are trained with.

    Args:
      config: the config, which is changed in place and returned.
      learning_rate: the constant rate.
      b2: decay of the second moment.
    """
    config.optimizer.update(name="radam", learning_rate=learning_rate, b2=b2)
    with config.ignore_type():
        config.optimizer.weight_decay = None
    return config
