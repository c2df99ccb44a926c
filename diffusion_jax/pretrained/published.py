"""Published networks as ours, and ours as theirs: what describes such a network, and its config.

    UNet2DModel     diffusers, in the layout of DDPM (Ho et al. 2020)    unet.UNet
    UNetModel       guided-diffusion (Dhariwal & Nichol 2021), improved-
                    diffusion, consistency_models                        unet.UNet
    UNet2DConditionModel    diffusers (Rombach et al. 2022)              sd_unet.SDUNet
    AutoencoderKL   diffusers (Rombach et al. 2022)                      autoencoder.AutoencoderKL
    DiT             the authors' own program (Peebles & Xie 2023)        dit.DiT
    SiT, LightningDiT, DiTTransformer2DModel (diffusers)                 dit.DiT
    SD3Transformer2DModel   diffusers (Esser et al. 2024)                mmdit.MMDiT
    NCSNpp          score_sde (Song et al. 2021)                         ncsnpp.NCSNpp
    SongUNet        EDM (Karras et al. 2022)                             ncsnpp.NCSNpp
    DhariwalUNet    EDM                                                  unet.UNet
    EDM2            EDM2 (Karras et al. 2024)                            edm2.EDM2UNet

A `Published` network says how its config becomes our options and back, and has one dictionary, from
the words in the paths of our parameters to the names of their modules. layouts.py makes the tables
of tensors of that; networks.py lists the networks.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.models import normalization

Options = dict[str, Any]
Shape = tuple[int, ...]
Flat = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """The order of the axes of a tensor: two functions, each of which undoes the other."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


class Published(NamedTuple):
    """A network that others publish.

    Attributes:
      model: the name of the network here, as in config.model.name.
      options: their config -> (our options, shape of an example).
      config: our options and the shape of an example -> their config.
      defaults: the defaults of their config.
      only: the options of ours of which theirs has no choice, or less -> the values that it has.
      words: our options, and 'side', the height of an example -> {a part of our paths: the same
        part of theirs}; several names with spaces between them are several tensors of theirs that
        are one of ours.
      layouts: our options -> {the end of our paths: layout}, where that is not the usual one.
      fixed: (our options, shape) -> the tensors that are not learned but stand in their files.
      described: the part of their config that the tensors alone determine.
      subtree: the part of the parameters of a run that are those of the network; '' means all.
      rule: what the values of their config may be (see `reading`).
      loose: further keys of their config that `config` does not give back, such as those of the
        training.
      settings: their config -> {config key: value} of what the training determines, such as
        the process; {} where a scheduler_config.json does.
      prepared: (their tensors, their config) -> the tensors that the words describe, where one
        name means several things.
      restored: the tensors that the words describe -> theirs, for export; it undoes `prepared`.
      released: the name of a file or folder that was published without a config -> its config.
      averages: the tensors of a file -> the averaged weights (EMA), where the file is a checkpoint
        of the training that has other tensors as well.
    """

    model: str
    options: Callable[[Mapping], tuple[Options, Shape]]
    config: Callable[[Options, Shape], dict[str, Any]]
    defaults: dict[str, Any]
    only: dict[str, tuple]
    words: Callable[[Options], dict[str, str]]
    layouts: Callable[[Options], dict[str, Layout]] = lambda options: {}
    fixed: Callable[[Options, Shape], dict[str, np.ndarray]] = lambda options, shape: {}
    described: Callable[[Flat], dict[str, Any]] = lambda tensors: {}
    subtree: str = ""
    rule: reading.Rule = reading.table()
    loose: tuple[str, ...] = ()
    settings: Callable[[Mapping], dict[str, Any]] = lambda config: {}
    prepared: Callable[[Flat, Mapping], Flat] = lambda tensors, config: tensors
    restored: Callable[[Flat], Flat] = lambda tensors: tensors
    released: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    averages: Callable[[Flat], Flat] = lambda tensors: tensors


# keys that describe an autoencoder's latents, for those who use them
SCALE = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
LOOSE = (*SCALE, "force_upcast")  # keys that do not describe a network


def read_config(
    network: Published, config: Mapping, file: str = "config.json"
) -> tuple[Options, Shape]:
    """Translate the config of a published network.

    The translation is checked by translating back: every key must come out as it went in.

    Args:
      network: the kind of network that the config describes.
      config: the content of its config.json; absent keys have the publisher's defaults.
      file: what the config was read from, for messages.

    Returns:
      (our options, the shape of an example).

    Raises:
      UserError: for a network that ours cannot represent.
    """
    config = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (network.defaults | config).items()
    }
    reading.check(config, network.rule, file)
    options, shape = network.options(config)
    ours = network.config(options, shape)
    for key, value in config.items():
        value = list(value) if isinstance(value, tuple) else value
        aside = key.startswith("_") or key in LOOSE + network.loose
        if not aside and value != ours.get(key):
            why = (
                f"only {ours[key]} can be imported"
                if key in ours
                else "this key is unknown, and cannot be imported"
            )
            raise UserError(f"{file} has {key}={value}; {why}")
    return options, shape


def write_config(
    network: Published, options: Options, shape: Shape, shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Translate the options of our network into the config of the published one.

    Args:
      network: the published network.
      options: our options.
      shape: the shape of an example.
      shapes: the shapes of all of our parameters, by path.

    Raises:
      UserError: naming every option that the published network does not have, and the overrides of
        a run that could be exported.
    """
    if wrong := misfits(network, options, shape, shapes):
        refuse(wrong)
    groups, epsilon = options.get("norm", (1, 1e-6)) or (0, 1e-6)
    if not groups:
        options = options | {"norm": (_common_groups(shapes), epsilon)}
    return network.config(options, shape)


class Misfit(NamedTuple):
    """A config key whose value the published network does not have.

    Attributes:
      value: the value.
      instead: a value that the published network has.
      why: an explanation; '' for none.
    """

    value: Any
    instead: Any
    why: str = ""


def misfits(
    network: Published, options: Options, shape: Shape, shapes: Mapping[str, Shape]
) -> dict[str, Misfit]:
    """Find the options of our network that the published kind of network does not have.

    Args:
      network: the published kind of network.
      options: the options of our network.
      shape: (H, W, C) of an example.
      shapes: the shape of each parameter by its path.

    Returns:
      {config key: Misfit}, each with the value that could be exported.
    """
    found = {
        f"model.{key}": Misfit(options[key], values[0])
        for key, values in network.only.items()
        if options[key] not in values
    }
    if classes := found.pop("model.num_classes", None):
        found["conditional"] = Misfit(True, False, f"{classes.value} classes")
    own = sorted(
        {normalization.groups(size[0]) for path, size in shapes.items() if path.endswith("/scale")}
    )
    norm = options.get("norm", (1, 1e-6))
    groups, epsilon = norm or (0, 1e-6)
    if not groups and len(own) > 1:
        several = f"{', '.join(map(str, own[:-1]))} or {own[-1]}"
        why = f"it means {several} groups, depending on the channels; the export has one number"
        found["model.norm"] = Misfit(norm, (_common_groups(shapes), epsilon), why)
    if width := options.get("head_width"):
        seen = attended_channels(options, shape)
        if min(seen) < width < max(seen):
            found["model.head_width"] = Misfit(
                width, math.gcd(*seen), f"there is attention on {min(seen)} channels too"
            )
    return found


def refuse(wrong: Mapping[str, Misfit], rest: str = "") -> None:
    """Refuse to export a run, naming the overrides of a run that can be exported.

    Args:
      wrong: the misfits by config key.
      rest: what else could be done, for the end of the message.

    Raises:
      UserError: lists all misfits.
    """
    what = "; ".join(
        f"config.{key}={one.value}" + (f" ({one.why})" if one.why else "")
        for key, one in wrong.items()
    )
    train = " ".join(
        f"--config.{key}={shlex.quote(str(one.instead))}" for key, one in wrong.items()
    )
    raise UserError(f"this run cannot be exported: {what}; train one with {train}{rest}")


def _common_groups(shapes: Mapping[str, Shape]) -> int:
    """Return one number of groups for all norms: the default, or one that divides all."""
    channels = {size[0] for path, size in shapes.items() if path.endswith("/scale")}
    return (
        normalization.groups(math.gcd(*channels))
        if len({*map(normalization.groups, channels)}) > 1
        else normalization.groups(max(channels))
    )


def attended_channels(options: Options, shape: Shape) -> list[int]:
    """Return the channels of the feature maps with attention, the middle's last.

    Args:
      options: the options of our U-Net, whose 'attention' lists the heights of these feature maps.
      shape: (H, W, C) of an example.
    """
    channels = [options["width"] * multiplier for multiplier in options["multipliers"]]
    return [
        c for level, c in enumerate(channels) if shape[0] // 2**level in options["attention"]
    ] + channels[-1:]


def missing(error: KeyError, what: str, tensors: Flat) -> UserError:
    """Return the error of a file that lacks a tensor of every network of its kind.

    Args:
      error: with the name of the tensor.
      what: the kind, such as 'a DiT'.
      tensors: those of the file, of which the message names the first.
    """
    first = ", ".join(repr(name) for name in [*tensors][:2])
    return UserError(
        f"these tensors are not those of {what}: {error} is missing, and they begin with {first}; "
        "take another --from, or bring your own network (docs/guides/weights.md)"
    )


@contextlib.contextmanager
def fitting(file: str) -> Iterator[None]:
    """Turn what fails in the translation of a foreign file into a UserError.

    The translations expect tensors of some type and number of dimensions, and numbers that go
    together. A file that breaks an expectation which nothing checks by name is refused here.

    Args:
      file: the name of the file, for the message.

    Raises:
      UserError: names the file and the cause.
    """
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file}: its tensors and config do not describe a network that can be built: "
            f"{why:.300}"
        ) from error


def below_ema(tensors: Flat) -> Flat:
    """Pick the averaged weights of a checkpoint that holds them as 'ema'.

    Args:
      tensors: {name: array} of the file.

    Returns:
      The averages by their names in the network; all tensors of any other file.
    """
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    return {name.removeprefix("ema."): tensor for name, tensor in found.items()} or tensors


def known_config(network: Published, config: Mapping, file: Path) -> dict[str, Any]:
    """Complete the config of a file that was published without one.

    Args:
      network: the published kind of network.
      config: the content of the config.json next to the file; its key 'config' may name one of
        network.released.
      file: the file of weights, whose name, or that of its folder ('ve/NAME'), may be one of them.

    Raises:
      UserError: for a name that is not one of them.
    """
    named = config.get("config")
    if named is not None and (not isinstance(named, str) or named not in network.released):
        raise unknown("config of config.json", str(named), network.released)
    names = [named, file.name, "/".join(file.resolve().parent.parts[-2:])]
    found = [network.released[name] for name in names if name in network.released]
    return {**(found[0] if found else {}), **config}


def without_fixed(
    network: Published, tensors: Flat, options: Options, shape: Shape
) -> dict[str, np.ndarray]:
    """Drop the tensors that are not learned, such as sinusoidal embeddings of positions.

    Args:
      network: the published kind of network.
      tensors: {name: array} of the file; it may lack the fixed ones.
      options: the options of our network.
      shape: (H, W, C) of an example.

    Raises:
      UserError: if one of them differs from the fixed values of our network.
    """
    fixed = network.fixed(options, shape)
    for name, value in fixed.items():
        found = tensors.get(name, value)
        if found.shape != value.shape or not np.allclose(found, value, atol=1e-3):
            raise UserError(
                f"{name} {list(found.shape)} is not the fixed {list(value.shape)} of this network"
            )
    return {name: tensor for name, tensor in tensors.items() if name not in fixed}
