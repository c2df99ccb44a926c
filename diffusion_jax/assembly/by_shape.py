"""The network of a data set of any shape, where the config leaves it to the data.

configs/arrays.py names the network 'auto'. Before overrides of config.model are applied, the shape
of a sample, which the header of a file of arrays states, chooses it: a MLP for vectors, a U-Net for
series, images and volumes, and a transformer where the extents cannot be halved. From then on the
config is as explicit as any other, and config.json records it.
"""

from __future__ import annotations

import inspect
import math

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, datasets
from diffusion_jax.assembly.build import member, resolved
from diffusion_jax.assembly.specs import with_args
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.parsing import expand_home
from diffusion_jax.data import any_shape, sound_sets, table, tensor_sets, tfds_sounds

AUTO = "auto"
MOST = 1024  # pixels at which a U-Net works without a stem, and tokens of a transformer
ATTENDED = 256  # pixels of the largest feature map with attention
NAMES = ("unet.UNet", "dit.DiT", "mlp.MLP")


def choose(config: ConfigDict, named: str | None = None) -> None:
    """Make a config whose network is 'auto' explicit, in place.

    Args:
      config: the config, with the overrides of config.data, before those of config.model.
      named: the override of config.model.name; None where there is none.

    Raises:
      UserError: where the data are not named, and for a network that cannot serve their shape.
    """
    shape, dtype = _described(config.data)
    name = "" if (named or AUTO) == AUTO else resolved(components.MODELS, named)
    with config.unlocked():
        with_network(config, shape, name)
        if any_shape.is_image(shape, dtype) or config.data.normalization == "range":
            config.sampler.clip = "static"  # values in [-1, 1]
        else:
            _of_unit_variance(config)
        if config.process.startswith("schedules.VE("):
            # the most distant of samples of unit variance in D dimensions, see fashion_latent.py
            farthest = max(10.0, float(round(1.5 * math.sqrt(2 * math.prod(shape)))))
            config.process = with_args(config.process, sigma_max=farthest)


def _described(section: ConfigDict) -> tuple[tuple[int, ...], np.dtype]:
    """The shape of a sample and its type, of files or of a set of tensorflow-datasets."""
    path = expand_home("config.data.path", section.path)
    if section.name not in ("arrays", "table", "sound"):
        if tfds_sounds.is_of_sounds(section.name, section.data_dir):
            wanted = datasets.sounds(section)
            own = tfds_sounds.described(section.name, section.data_dir, wanted)
            return own.shape, np.dtype(own.dtype)
        return tensor_sets.described(section.name, section.data_dir, section.channel_axis)
    if not path:
        raise UserError(
            "config.data.path is missing: the .npz or .npy file whose shape chooses the network, "
            "--config.data.path=FILE"
        )
    if section.name == "arrays":
        return any_shape.described(path, section.channel_axis)
    if section.name == "table":
        found = table.load(path, section.normalization, datasets.roles(section))
        return found.image_shape, np.dtype(found.normalization.dtype)
    own = sound_sets.described(path, datasets.sounds(section), section.layout, section.limit_bad)
    return own.shape, np.dtype(own.dtype)


def with_network(config: ConfigDict, shape: tuple[int, ...], name: str = "") -> None:
    """Replace the network of a config, in place; options that it gives, as for few steps, are kept.

    Args:
      config: the config, unlocked.
      shape: (N_1, ..., N_d, C) of a sample.
      name: as of `network`.

    Raises:
      UserError: for a network that cannot serve the shape.
    """
    given = {key: value for key, value in config.model.items() if key != "name"}
    config.model = network(shape, name)
    config.model.update(given)


def _of_unit_variance(config: ConfigDict) -> None:
    """Set sigma_data = 1 in every component that has the standard deviation of the data."""
    for section, key, family in (
        (config, "parameterization", components.PARAMETERIZATIONS),
        (config, "objective", components.OBJECTIVES),
        (config.sampler, "grid", components.GRIDS),
    ):
        spec = section[key]
        if spec == AUTO or "sigma_data" in spec:
            continue
        if "sigma_data" in inspect.signature(member(family, spec)).parameters:
            section[key] = with_args(spec, sigma_data=1.0)


def network(shape: tuple[int, ...], name: str = "") -> ConfigDict:
    """Return the section config.model for samples of a shape: a network for one or two CPU cores.

    Args:
      shape: (N_1, ..., N_d, C) of a sample.
      name: one of NAMES; '' takes the one that suits the shape.

    Raises:
      UserError: for a network that cannot serve the shape.
    """
    *sizes, channels = shape
    halvings = _halvings(sizes)
    name = name or _suitable(sizes, halvings)
    if name not in NAMES or (name == "mlp.MLP") != (not sizes):
        fitting = "mlp.MLP" if not sizes else "unet.UNet or dit.DiT"
        raise UserError(f"config.model.name={name}: samples {tuple(shape)} need {fitting}")
    if name == "mlp.MLP":
        return components.network(name, width=128 if channels <= 16 else 256)
    if name == "dit.DiT":
        patch = 1
        while math.prod(sizes) > MOST // 4 * patch ** len(sizes) and 2 * patch <= 2**halvings:
            patch *= 2
        return components.network(name, patch=patch, width=128, depth=6, heads=4)
    stem = 1
    while math.prod(sizes) > MOST * stem ** len(sizes) and 4 * stem <= 2**halvings:
        stem *= 2
    levels = [[size // stem // 2**i for size in sizes] for i in range(3)]
    levels = [own for i, own in enumerate(levels) if stem * 2**i <= 2**halvings and min(own) > 1]
    return components.network(
        name,
        stem=stem,
        width=32,
        multipliers=(1, 2, 2)[: max(1, len(levels))],
        attention=tuple(own[0] for own in levels if math.prod(own) <= ATTENDED),
        head_width=32,
    )


def _halvings(sizes: list[int]) -> int:
    """How often all extents can be halved."""
    common = math.gcd(*sizes) if sizes else 1
    return (common & -common).bit_length() - 1


def _suitable(sizes: list[int], halvings: int) -> str:
    """The network that suits samples of these extents."""
    if not sizes:
        return "mlp.MLP"
    if halvings:
        return "unet.UNet"
    if math.prod(sizes) <= MOST:
        return "dit.DiT"
    raise UserError(
        f"samples of {' x '.join(map(str, sizes))} cannot be halved, and are too large for a "
        f"transformer of single values (more than {MOST}); crop or pad them to multiples of 8"
    )
