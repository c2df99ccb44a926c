"""The data set that a config names, with its captions encoded."""

from __future__ import annotations

from absl import logging

from diffusion_jax import data, progress
from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build, members
from diffusion_jax.errors import UserError
from diffusion_jax.models import text
from diffusion_jax.pretrained import weights
from diffusion_jax.training import distributed


def text_encoder(config) -> text.Encoder | None:
    """The encoder of config.text, if there is one. UserError for a network that reads no captions."""
    wanted = config.text
    if not wanted.encoder:
        return None
    if config.model.name in members(components.MODELS) and "text" not in components.network_fields(
        config.model.name
    ):
        raise UserError(
            f"config.text.encoder={wanted['encoder']}: {config.model.name} reads no captions; use unet.UNet"
        )
    if wanted.max_length < 1:
        raise UserError(
            f"config.text.max_length={wanted['max_length']}: at least one token must be read"
        )
    return build(components.ENCODERS, wanted.encoder, wanted.max_length, weights.load)


def dataset(config) -> data.Dataset:
    """The data set of config.data, with what config.text makes of its captions."""
    keys = (
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
    )
    encoder = text_encoder(config)
    with distributed.first_before_others(
        "data"
    ):  # what the first process prepares on a shared disk, the others find
        options = {key: config.data[key] for key in keys if key in config.data}
        loaded = data.load(**options, seed=config.seed, captioned=bool(encoder))
        if config.data.num_classes not in (0, loaded.num_classes):
            found = f"{loaded.num_classes} classes" if loaded.num_classes else "no labels"
            raise UserError(
                f"config.data.num_classes={config.data.num_classes}: the data set has {found}; set 0 to take what it has"
            )
        data.describe.announce(loaded)
        if encoder is None:
            return loaded
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
        return loaded._replace(
            train=data.captions.CaptionedSource(loaded.train, tables),
            test=data.captions.CaptionedSource(loaded.test, tables),
        )


def data_shape(config) -> tuple[tuple[int, ...], int]:
    """(shape of an example, classes) of config.data, without the data if the config states all of
    it or TFDS knows.
    """
    wanted = config.data
    if wanted.image_size and wanted.channels and wanted.num_classes:
        return (wanted.image_size, wanted.image_size, wanted.channels), wanted.num_classes
    if wanted.name in data.records.POPULAR and not wanted.path:
        return data.records.described(
            wanted.name, wanted.data_dir, wanted.image_size, wanted.channels
        )
    loaded = dataset(config)
    return loaded.image_shape, loaded.num_classes
