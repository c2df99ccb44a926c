"""Sampling settings, and the compiled function that draws samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, denoiser
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.denoiser import Ensemble
from diffusion_jax.assembly.settings import Experiment, SamplingSettings
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.data import transforms
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.evaluation import rows
from diffusion_jax.samplers import base, grids
from diffusion_jax.training import sharding


class SamplingMethod(NamedTuple):
    """Sampling settings resolved for one model.

    Attributes:
      sampler: the sampler.
      ts: the decreasing times, (n,).
      guidance: scale of the guidance.
      clip: thresholding of x0-hat.
      noise: where the noise comes from, a key of components.NOISES.
      guided: whether guidance has an effect (denoiser.is_guided).
      grid: the spec of the grid of `ts`; never 'auto'.
    """

    sampler: base.Sampler
    ts: Array
    guidance: float
    clip: str
    noise: str = "independent"
    guided: bool = True
    grid: str = ""


def method(experiment: Experiment, settings: SamplingSettings | None = None) -> SamplingMethod:
    """Resolve sampling settings for a model: its times, and whether guidance has an effect.

    Args:
      experiment: the model.
      settings: None for experiment.sampling.

    Raises:
      UserError: for unknown names, a budget below one evaluation, and guidance that the model has
        no condition for.
    """
    settings = settings or experiment.sampling
    if settings.clip not in components.CLIPS:
        raise unknown("config.sampler.clip", settings.clip, components.CLIPS)
    if settings.nfe < 1:
        raise UserError(
            f"config.sampler.nfe={settings.nfe}: at least one network evaluation is needed"
        )
    if settings.noise not in components.NOISES:
        raise unknown("config.sampler.noise", settings.noise, components.NOISES)
    ts = times(experiment, settings)
    guided, still = denoiser.is_guided(experiment, settings.guidance), experiment.guide.still
    if guided and still and bool(still(experiment.process, ts).all()):
        raise UserError(
            f"config.sampler.nfe={settings.nfe}: the guide leaves x_t where it is at all of these "
            "times, so that samples would be noise; take more evaluations, or "
            "--config.sampler.guide='cfg_zero(zero_init=0.0)'"
        )
    return SamplingMethod(
        settings.sampler,
        ts,
        settings.guidance,
        settings.clip,
        settings.noise,
        guided,
        grid_spec(settings),
    )


def with_sampler(settings: SamplingSettings, spec: str) -> SamplingSettings:
    """Return sampling settings with another sampler.

    Args:
      settings: the settings, whose grid, budget and guidance stay.
      spec: the spec of the sampler, such as 'multistep.dpmpp_2m'.

    Raises:
      UserError: for an unknown sampler.
    """
    return settings._replace(sampler=build(components.SAMPLERS, spec), name=spec)


def grid_spec(settings: SamplingSettings) -> str:
    """Return the spec of the grid of times; for 'auto' it is the sampler's own.

    Args:
      settings: the sampling settings.
    """
    return base.grid_spec(settings.grid, settings.sampler)


def times(experiment: Experiment, settings: SamplingSettings) -> Array:
    """Return the decreasing times (n,) at which the settings evaluate the network.

    Args:
      experiment: the model.
      settings: the sampling settings, whose sampler and budget decide n.
    """
    count = base.points(settings.sampler, settings.nfe)
    return grid(experiment, grid_spec(settings), count)


def grid(experiment: Experiment, spec: str, n: int) -> Array:
    """The n decreasing times of a grid.

    Args:
      experiment: the model.
      spec: one of samplers/grids.py, or the name of a grid that experiments.optimize_grid placed
        for this model.
      n: number of times.
    """
    for folder in experiment.grids:
        if (own := folder / f"{spec}.json").is_file():
            return grids.stored(experiment.process, n, str(own))
    return build(components.GRIDS, spec, experiment.process, n)


def evaluations(chosen: SamplingMethod) -> int | None:
    """Return the number of network evaluations per image.

    Guidance doubles the cost of an evaluation, not their number.

    Args:
      chosen: the sampler with its times.

    Returns:
      None for an adaptive sampler, whose tolerance decides.
    """
    return None if base.adaptive(chosen.sampler) else base.evaluations(chosen.sampler, chosen.ts)


def pad(ts: Array, length: int) -> Array:
    """Repeat the last of some times, so that one program serves several grids.

    Args:
      ts: decreasing times (n,).
      length: number of times of the result, at least n.
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
    """The function that draws samples.

    One compiled program serves every grid padded to one length and every scale.

    Args:
      experiment: the model.
      sampler: the sampler.
      guided: whether guidance has an effect.
      clip: thresholding of x0-hat.
      noise: a key of components.NOISES.
      count: whether the NFE of each image, (B,), is also returned.

    Returns:
      A jitted function (ensemble, keys (B,), cond, ts, scale) -> images (B, ...).
    """
    settings = experiment.sampling._replace(sampler=sampler, clip=clip, noise=noise)

    @jax.jit
    def run(ensemble: Ensemble, keys: Key, cond: Cond, ts: Array, scale: Array) -> Array:
        cond = experiment.conditions.null(len(keys)) if cond is None else cond
        bound, own = denoiser.unpack(experiment, ensemble)
        guidance = scale if guided else None
        x, spent = experiment.kind.draw(bound, own, keys, cond, ts, guidance, settings)
        x = decoded(bound, x)
        return (x, spent) if count else x

    return run


def decoded(experiment: Experiment, x: Array) -> Array:
    """Return the images of samples: themselves, or what the autoencoder makes of latents.

    Args:
      experiment: the model, with the autoencoder of its latents if it has one.
      x: samples (B, ...) of the model.

    Returns:
      (B, H, W, C) in [-1, 1]; samples that are not latents stay as they are.
    """
    latents = experiment.latents
    return x if latents is None else latents.decode(latents.params, x)


def to_output(experiment: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from decoded x0 to samples as they are judged, shown and written.

    Images become levels of 8 bits; points and normalized arrays stay float32, and are refused where
    they are not finite. Rows of a table become the nearest ones that it can have.

    Args:
      experiment: the model.
    """
    if experiment.is_image:
        return transforms.to_uint8
    return functools.partial(_finite, experiment.normalization)


def _finite(known: Normalization | None, x: np.ndarray) -> np.ndarray:
    x = transforms.finite(np.asarray(x))
    return known.possible(x) if known and known.columns else x


def to_images(experiment: Experiment, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function x0 (N, ...) -> samples as `to_output` makes them; latents are decoded.

    This is for samples that are drawn without `sample_fn`.

    Args:
      experiment: the model, with the autoencoder of its latents if it has one.
      batch_size: number of latents that are decoded at once.
    """
    if experiment.latents is None:
        return to_output(experiment)
    latents = experiment.latents
    decode = jax.jit(lambda x, params: latents.decode(params, x))
    return lambda x: transforms.to_uint8(
        rows.over_rows(decode, x, latents.params, block=batch_size)
    )


def program(
    experiment: Experiment,
    params: Params,
    chosen: SamplingMethod,
    mesh: Mesh | None = None,
) -> Callable[[Key, Cond, Array, Array], Array]:
    """Make a function that draws samples on any grid: `sample_fn` with its parameters.

    Args:
      experiment: the model.
      params: the parameters of the network.
      chosen: how to sample; its times and the scale of its guidance are not used.
      mesh: the devices that draw; the results are then numpy arrays on every process. None for one
        device.

    Returns:
      (keys (B,), cond, ts (n,), scale) -> images (B, ...). One compiled program serves all times
      that are padded to one length.
    """
    run = sample_fn(
        experiment,
        chosen.sampler,
        guided=chosen.guided,
        clip=chosen.clip,
        noise=chosen.noise,
    )
    return _bound(run, denoiser.ensemble(experiment, params), mesh)


def sample_with(
    experiment: Experiment, params: Params, chosen: SamplingMethod, mesh: Mesh | None = None
) -> Callable[[Key, Cond], Array]:
    """Make the function (keys, cond) -> images that evaluation.generate takes.

    Args:
      experiment: the model.
      params: the parameters of the network.
      chosen: how to sample.
      mesh: the devices that draw; the images are then numpy arrays on every process. None for one
        device.
    """
    run = program(experiment, params, chosen, mesh)
    # host arrays, the same on every process
    rest = np.asarray(chosen.ts), np.float32(chosen.guidance)
    return lambda keys, cond: run(keys, cond, *rest)


def trajectory_program(
    experiment: Experiment,
    params: Params,
    chosen: SamplingMethod,
    watch: Callable[[Experiment, Array, Array, Array], Any],
    mesh: Mesh | None = None,
    *,
    padded: bool = False,
) -> Callable[[Key, Cond, Array, Array], Any]:
    """Make the function that samples and returns what is seen on the way from noise to data.

    The states are x at each of the times, with the x0-hat there, which costs one more evaluation
    for each. The x0-hat of the last state are the samples.

    Args:
      experiment: the model.
      params: the parameters of the network.
      chosen: how to sample; its times and the scale of its guidance are not used.
      watch: (experiment, x (B, ...), x0-hat (B, ...), t) -> a tree of arrays (B, ...) to keep of
        each state; traceable.
      mesh: the devices that draw; None for one device.
      padded: whether the times may be padded to one length, so that one compiled program serves
        all. There are zeros instead of the states of the padding.

    Returns:
      A function (keys (B,), cond, ts (n,), scale) -> the tree of arrays (B, n, ...), a state for
      each time.
    """

    @jax.jit
    def run(ensemble: Ensemble, keys: Key, cond: Cond, ts: Array, scale: Array) -> Any:
        cond = experiment.conditions.null(len(keys)) if cond is None else cond
        bound, own = denoiser.unpack(experiment, ensemble)
        guidance, process = scale if chosen.guided else None, bound.process
        denoise = denoiser.denoiser(bound, own, scale=guidance, clip=chosen.clip)
        options = {"noise": components.NOISES[chosen.noise], "padded": padded}

        def seen(x: Array, t: Array) -> Any:
            return watch(bound, x, denoise(x, t, cond).x0, t)

        x = base.start(process, keys, (len(keys), *bound.shape))
        moved = base.sample(
            chosen.sampler, denoise, process, keys, x, ts, cond, observe=seen, **options
        ).observed
        first = jax.tree.map(lambda each: each[None], seen(x, ts[0]))
        states = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, moved)
        return jax.tree.map(lambda each: jnp.moveaxis(each, 0, 1), states)

    return _bound(run, denoiser.ensemble(experiment, params), mesh)


def trajectory_fn(
    experiment: Experiment,
    params: Params,
    chosen: SamplingMethod,
    watch: Callable[[Experiment, Array, Array, Array], Any],
    mesh: Mesh | None = None,
) -> Callable[[Key, Cond], Any]:
    """Make the function of `trajectory_program` on the method's own times.

    Args:
      experiment: the model.
      params: the parameters of the network.
      chosen: how to sample.
      watch: as in `trajectory_program`.
      mesh: the devices that draw; None for one device.

    Returns:
      A function (keys (B,), cond) -> the tree of arrays (B, n, ...), a state for each time.
    """
    run = trajectory_program(experiment, params, chosen, watch, mesh)
    rest = np.asarray(chosen.ts), np.float32(chosen.guidance)
    return lambda keys, cond: run(keys, cond, *rest)


def _bound(
    run: Callable[..., Any], ensemble: Ensemble, mesh: Mesh | None
) -> Callable[[Key, Cond, Array, Array], Any]:
    """The function (keys, cond, ts, scale) of run(ensemble, keys, cond, ts, scale) on a mesh."""
    if mesh is None:
        return lambda keys, cond, ts, scale: run(ensemble, keys, cond, ts, scale)
    everywhere = sharding.spread(run, mesh)
    return lambda keys, cond, ts, scale: everywhere(ensemble, (keys, cond), ts, scale)


def sampling_mesh(config: ConfigDict) -> Mesh:
    """Make the mesh of config.mesh, or one of all devices along 'data' where it does not fit.

    Args:
      config: the config of the model, which may have been trained on other devices.
    """
    try:
        return sharding.make_mesh(config.mesh.to_dict())
    except UserError:
        return sharding.make_mesh()
