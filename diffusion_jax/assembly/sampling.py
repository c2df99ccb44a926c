"""Sampling settings, and the compiled function that draws samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import components, conditions, denoiser
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.denoiser import Ensemble
from diffusion_jax.assembly.experiment import Experiment, is_image
from diffusion_jax.assembly.kinds import kind
from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import rows
from diffusion_jax.samplers import base, grids
from diffusion_jax.training import sharding
from diffusion_jax.types import Array, Cond, Key, Params


class Plan(NamedTuple):
    """How to sample: the method, the decreasing times, the guidance scale, the thresholding, where
    the noise comes from.
    """

    sampler: base.Sampler
    ts: Array
    guidance: float
    clip: str
    noise: str = "independent"
    guided: bool = True  # see is_guided
    grid: str = ""  # the spec of the grid that ts is; never 'auto'


def plan(experiment: Experiment, **changes) -> Plan:
    """The Plan of config.sampler, with changes of its keys.

    Raises:
      UserError: for unknown names, a budget below one evaluation, and guidance that the model has
        no condition for.
    """
    config = experiment.config.sampler.to_dict() | changes
    sampler = build(components.SAMPLERS, config["name"])
    if config["clip"] not in components.CLIPS:
        raise unknown("config.sampler.clip", config["clip"], components.CLIPS)
    if config["nfe"] < 1:
        raise UserError(
            f"config.sampler.nfe={config['nfe']}: at least one network evaluation is needed"
        )
    if config["noise"] not in components.NOISES:
        raise unknown("config.sampler.noise", config["noise"], components.NOISES)
    guided = denoiser.is_guided(experiment, config["guidance"])
    spec = grids.spec(config["grid"], sampler)
    ts = grid(experiment, spec, base.points(sampler, config["nfe"]))
    return Plan(sampler, ts, config["guidance"], config["clip"], config["noise"], guided, spec)


def grid(experiment: Experiment, spec: str, n: int) -> Array:
    """The grid of n times that a spec names: one of samplers/grids.py, or one that
    experiments.optimize_grid kept for this model.
    """
    own = experiment.grids and experiment.grids / f"{spec}.json"
    if own and own.is_file():
        return grids.stored(experiment.process, n, str(own))
    return build(components.GRIDS, spec, experiment.process, n)


def evaluations(chosen: Plan) -> int | None:
    """NFE: network evaluations per image (guidance doubles the cost of each, not their number);
    None where the tolerance decides.
    """
    return None if base.adaptive(chosen.sampler) else base.evaluations(chosen.sampler, chosen.ts)


def pad(ts: Array, length: int) -> Array:
    """ts with its last time repeated up to `length`: grids of several lengths for one compiled
    sampler.
    """
    return jnp.concatenate([ts, jnp.broadcast_to(ts[-1:], (length - len(ts),))])


def sample_fn(
    experiment: Experiment,
    sampler: base.Sampler,
    *,
    guided: bool,
    clip: str,
    noise: str = "independent",
    count: bool = False,
) -> Callable:
    """Jitted (params, keys (B,), cond, ts, scale) -> images (B, ...): one program for every grid
    padded to one length and every scale.

    params may be an `ensemble`. count: also the NFE of each image, (B,). An autoencoder decodes z ~
    N(0, I) and looks at nothing else.
    """
    draw = kind.KINDS[type(experiment.objective)].draw

    @jax.jit
    def run(params: Params, keys: Key, cond: Cond, ts: Array, scale: Array) -> Array:
        cond = conditions.null_cond(experiment, len(keys)) if cond is None else cond
        x, spent = draw(
            experiment,
            params,
            keys,
            cond,
            ts,
            scale if guided else None,
            sampler,
            clip,
            components.NOISES[noise],
        )
        x = decoded(experiment, params, x)
        return (x, spent) if count else x

    return run


def decoded(experiment: Experiment, params: Params, x: Array) -> Array:
    """The images of samples: they themselves, or what the autoencoder makes of latents. params:
    those of sample_fn.
    """
    if experiment.latents is None:
        return x
    own = params.autoencoder if isinstance(params, Ensemble) else experiment.latents.params
    return experiment.latents.decode(own, x)


def finished(experiment: Experiment, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """x0 (N, ...) -> uint8 images, decoded if they are latents; points stay as they are. For
    samples made without sample_fn.
    """
    if not is_image(experiment):
        return transforms.finite
    if experiment.latents is None:
        return transforms.to_uint8
    decode = jax.jit(lambda x, params: decoded(experiment, params, x))
    params = Ensemble(None, (), experiment.latents.params)
    return lambda x: transforms.to_uint8(rows.over_rows(decode, x, params, block=batch_size))


def sample_with(
    experiment: Experiment, params: Params, chosen: Plan, mesh=None
) -> Callable[[Key, Cond], Array]:
    """(keys, cond) -> images, by this plan: what evaluation.generate takes.

    mesh: the images are made on all of its devices, whatever their number, and are numpy on every
      process (sharding.spread).
    """
    run = sample_fn(
        experiment, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise
    )
    params = denoiser.ensemble(experiment, params)
    rest = (
        np.asarray(chosen.ts),
        np.float32(chosen.guidance),
    )  # of the host: the same on every process
    if mesh is None:
        return lambda keys, cond: run(params, keys, cond, *rest)
    everywhere = sharding.spread(run, mesh)
    return lambda keys, cond: everywhere(params, (keys, cond), *rest)


def sampling_mesh(config):
    """config.mesh where it fits the devices that are here; else all of them side by side: a model
    goes where it is wanted.
    """
    try:
        return sharding.make_mesh(config.mesh.to_dict())
    except UserError:
        return sharding.make_mesh()
