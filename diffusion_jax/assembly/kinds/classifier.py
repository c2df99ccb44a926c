"""Noise-conditional classifiers, for classifier guidance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.assembly import conditions, denoiser, step_inputs
from diffusion_jax.assembly.kinds import diffusion
from diffusion_jax.assembly.settings import Experiment, Kind
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Key, Params
from diffusion_jax.processes import gaussian
from diffusion_jax.training import step


def loss(experiment: Experiment) -> step.LossFn:
    """Return the loss -log p(label | x_t), with x_t as the config's objective draws it.

    Args:
      experiment: the classifier.

    Returns:
      A loss (B,) with the metrics 'level' (log-SNR) and 'accuracy' (0 or 1 for each example).
    """

    def run(params: Params, batch, keys: Key, now: step.Now):
        noised = experiment.objective.draw(
            arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE), conditions.example(batch, keys)
        )
        rngs = step_inputs.dropout(keys, now.train)
        log_p = jax.nn.log_softmax(
            denoiser.logits(experiment, params)(noised.x_t, noised.t, train=now.train, rngs=rngs)
        )
        own = jnp.take_along_axis(log_p, batch["label"][:, None], 1)[:, 0]
        right = (jnp.argmax(log_p, 1) == batch["label"]).astype(jnp.float32)
        return -own, {"level": gaussian.logsnr(experiment.process, noised.t), "accuracy": right}

    return run


def draw(experiment: Experiment, *_: Any) -> tuple[Array, Array]:
    """Refuse to sample: a classifier draws no samples.

    Args:
      experiment: the classifier, which the message names.
      *_: the other arguments of `draw`, which are not used.

    Raises:
      UserError: always.
    """
    raise UserError(
        f"{experiment.specs.model} is a classifier, which does not generate samples; use a "
        "diffusion model"
    )


KIND = Kind(
    name="a classifier",
    complete=diffusion.complete,
    prepare=diffusion.prepare,
    init=diffusion.init,
    loss=loss,
    draw=draw,
    denoises=False,
    samples=False,
    classifies=True,
)
