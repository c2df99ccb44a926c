"""Diffusion models: a denoiser that is trained by an objective and sampled by a solver."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import arrays
from diffusion_jax.assembly import conditions, denoiser
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.denoisers import parameterization
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base
from diffusion_jax.training import step
from diffusion_jax.types import Array, Key, Params


def _init_denoiser(experiment: Experiment, key: Key) -> Params:
    x = jnp.zeros((1, *experiment.shape))
    return experiment.model.init(key, x, jnp.zeros(1), conditions.null_cond(experiment, 1))[
        "params"
    ]


def _denoising_loss(experiment: Experiment) -> Callable:
    """The loss of a denoiser, with the level of its noise, {'level': log-SNR (B,)}."""
    network, objective = denoiser.apply(experiment), experiment.objective

    def loss(params: Params, batch, keys: Key, now: step.Now):
        noised = objective.draw(arrays.fold_in(keys, 0), conditions.example(batch, keys))
        rngs = {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        denoise = parameterization.denoiser(
            network,
            params,
            experiment.parameterization,
            experiment.process,
            train=now.train,
            rngs=rngs,
        )
        losses = objective.loss(
            denoise, noised, conditions.told(experiment, batch, keys, now.train)
        )
        return losses, {"level": gaussian.logsnr(experiment.process, noised.t)}

    return loss


def _draw_diffusion(
    experiment, params, keys, cond, ts, scale, sampler, clip, noise
) -> tuple[Array, Array]:
    """(x0, NFE of each) by a denoiser and a sampler."""
    denoise = denoiser.denoiser(experiment, params, scale=scale, clip=clip)
    x = base.start(experiment.process, keys, (len(keys), *experiment.shape))
    return base.sample(
        sampler,
        denoise,
        experiment.process,
        keys,
        x,
        ts,
        cond,
        padded=True,
        noise=noise,
        count=True,
    )
