"""The data set that a config names, with its captions encoded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import components, defaults
from diffusion_jax.assembly.build import build, members
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import progress, staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import consent, features, sound_sets
from diffusion_jax.models import text
from diffusion_jax.pretrained import weights
from diffusion_jax.training import distributed

# the keys of config.data that loading takes
KEYS = (
    "name",
    "path",
    "data_dir",
    "image_size",
    "channels",
    "num_classes",
    "captions",
    "limit_bad",
    "layout",
    "value_range",
    "normalization",
    "fit",
    *data.table.Roles._fields,
    "condition",
    "buckets",
    "channel_axis",
)
SOUND_KEYS = ("rate", "length", "channels", "pattern", "class_fields", "test_where")


def named(config: ConfigDict) -> list[str]:
    """Return the keys of config.data that say which data set it is.

    Args:
      config: the config.
    """
    wanted = dict.fromkeys((*KEYS, "sound", *SOUND_KEYS, "dense"))
    return [key for key in wanted if key in config.data]


def text_encoder(config: ConfigDict) -> text.Encoder | None:
    """Return the text encoder of config.text; None if the config names none.

    Args:
      config: the config, whose network must read captions if it names an encoder.

    Raises:
      UserError: for a network that reads no captions.
    """
    wanted = config.text
    if not wanted.encoder:
        return None
    network = config.model.name
    known = network in members(components.MODELS)
    if known and "text" not in components.network_fields(network):
        raise UserError(
            f"config.text.encoder={wanted.encoder}: {network} reads no captions; use unet.UNet, "
            "dit.DiT or mmdit.MMDiT"
        )
    if wanted.max_length < 1:
        raise UserError(
            f"config.text.max_length={wanted.max_length}: at least one token must be read"
        )
    folder = {"folder": staging.local(wanted.folder, "config.text.folder", writable=False)}
    options = folder if wanted.folder else {}
    return build(components.ENCODERS, wanted.encoder, wanted.max_length, weights.load, **options)


def dataset(config: ConfigDict) -> data.Dataset:
    """Load the data set of config.data, with its captions encoded by config.text.

    Args:
      config: the config; only the sections data and text, the seed and the name of the network are
        read.

    Raises:
      UserError: for data that cannot be read, or with another number of classes than the config
        says.
    """
    encoder, wanted = text_encoder(config), config.data.num_classes
    # the other processes find what the first prepares on a shared disk
    with distributed.first_before_others("data"):
        options = {key: config.data[key] for key in KEYS if key in config.data}
        options = {k: v for k, v in options.items() if k not in data.table.Roles._fields}
        options["roles"] = roles(config.data)
        options["dense"] = components.stored_dense(config.data.get("dense", ""))
        if "sound" in config.data:
            options["sounds"] = sounds(config.data)
        for key in {*consent.KEYS} & {*options}:
            options[key] = staging.local(options[key], f"config.data.{key}", writable=False)
        loaded = data.load(**options, seed=config.seed, captioned=bool(encoder))
        if wanted not in (0, loaded.num_classes):
            found = f"{loaded.num_classes} classes" if loaded.num_classes else "no labels"
            raise UserError(
                f"config.data.num_classes={wanted}: the data set has {found}; set 0 to use that "
                "number"
            )
        data.describe.announce(loaded)
        return _with_captions(loaded, encoder) if encoder else loaded


def roles(section: ConfigDict) -> data.table.Roles:
    """What config.data says about the columns of a table.

    Args:
      section: config.data.
    """
    return data.table.Roles(**{k: section[k] for k in data.table.Roles._fields if k in section})


def sounds(section: ConfigDict) -> sound_sets.Request:
    """What config.data says about sounds.

    Args:
      section: config.data.

    Raises:
      UserError: for an unknown representation.
    """
    representation = build(components.SOUNDS, section.sound)
    return sound_sets.Request(representation, **{key: section[key] for key in SOUND_KEYS})


def _with_captions(loaded: data.Dataset, encoder: text.Encoder) -> data.Dataset:
    """The data set with its captions encoded; a warning counts those that are cut."""
    some = loaded.captions[:10_000]
    if cut := sum(encoder.count(caption) > encoder.max_length for caption in some):
        logging.warning(
            "%d of %d captions are longer than config.text.max_length=%d, and cut",
            cut,
            len(some),
            encoder.max_length,
        )
    tables = data.captions.tables(
        loaded.captions,
        encoder.encode,
        encoder.entries,
        kept=encoder.cache_name,
        progress=progress.progress,
    )
    train, test = (
        data.captions.CaptionedSource(split, tables) for split in (loaded.train, loaded.test)
    )
    return loaded._replace(train=train, test=test)


def with_features(loaded: data.Dataset, config: ConfigDict) -> data.Dataset:
    """Add the features of config.repa to the training split.

    Args:
      loaded: the data set of config.data.
      config: the config.

    Raises:
      UserError: for features that do not fit, and for images that are changed as they are read.
    """
    repa = defaults.with_defaults(config).repa
    if not repa.features:
        return loaded
    for key in ("flip", "augment"):
        if config.data.get(key):
            raise UserError(
                f"config.data.{key}={config.data[key]}: config.repa.features has the features of "
                f"the images as they are; set --config.data.{key}={type(config.data[key])()}"
            )
    path = staging.local(repa.features, "config.repa.features", writable=False)
    if "aligned" not in config.model:
        return loaded  # which `assemble` refuses
    return loaded._replace(train=features.with_features(loaded.train, path, config.model.aligned))


def training_batches(
    experiment: Experiment, dataset: data.Dataset, rows: np.ndarray | None = None
) -> Callable[[int], dict[str, np.ndarray]]:
    """Return the function step -> the batch that a model trains on, as its config says.

    Args:
      experiment: the model and its settings.
      dataset: its data.
      rows: the positions in the batch of this process (`Runner.rows`); None for all.
    """
    settings = experiment.data
    return data.batches(
        dataset.train,
        batch_size=settings.batch_size,
        seed=experiment.seed,
        flip=settings.flip,
        balanced=settings.class_balanced,
        rows=rows,
    )


def data_shape(config: ConfigDict) -> tuple[tuple[int, ...], int]:
    """Return the shape of an example and the number of classes of config.data.

    The data are not read where the config states all of it or TFDS knows it.

    Args:
      config: the config; only config.data and what `dataset` needs are read.

    Returns:
      (shape (H, W, C), number of classes); 0 classes for data without labels.
    """
    wanted = config.data
    stated = wanted.image_size and wanted.channels
    if stated and (wanted.num_classes or not config.conditional):
        shape = data.transforms.fitted_shape((), wanted.image_size, wanted.channels)
        return shape, wanted.num_classes
    if wanted.name in data.records.POPULAR and not wanted.path:
        return data.records.described(
            wanted.name, wanted.data_dir, wanted.image_size, wanted.channels
        )
    loaded = dataset(config)
    return loaded.image_shape, loaded.num_classes
