"""Noise-conditional classifiers, for classifier guidance."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import arrays
from diffusion_jax.assembly import conditions, denoiser
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.processes import gaussian
from diffusion_jax.training import step
from diffusion_jax.types import Key, Params


def classifier_loss_fn(experiment: Experiment) -> Callable:
    """As loss_fn, for a noise-conditional classifier: -log p(label | x_t), with x_t as the config's
    objective draws it; 'accuracy'.
    """

    def loss(params: Params, batch, keys: Key, now: step.Now):
        noised = experiment.objective.draw(arrays.fold_in(keys, 0), conditions.example(batch, keys))
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        log_p = jax.nn.log_softmax(
            denoiser.logits(experiment, params)(noised.x_t, noised.t, train=now.train, rngs=rngs)
        )
        own = jnp.take_along_axis(log_p, batch["label"][:, None], 1)[:, 0]
        right = (jnp.argmax(log_p, 1) == batch["label"]).astype(jnp.float32)
        return -own, {"level": gaussian.logsnr(experiment.process, noised.t), "accuracy": right}

    return loss
