"""What samples of a shape are outside of the program: a picture of them, and the arrays of a file.

`media_of` is the one place where the shape of a sample decides this. A member of the family is a
`Media`. Every sample has a tile, an image of its own size, of which all
grids, strips and mosaics are made. Points and vectors are better seen as a set: their own pictures
are plots next to real data.

    images of 8 bits         the images                     'images' in an .npz
    vectors                  bars; sets: pairs of columns   'data' in an .npz, and a .csv table
    rows of a table          bars; sets: marginals, pairs   the same, with its cells and headings
    series                   lines, one color a channel     'data' in an .npz
    images of other numbers  gray or color, by their range  'data' in an .npz
    volumes                  slices along the first axis    'data' in an .npz
    sounds                   spectrograms                   'data' and 'rate' in an .npz, WAV files

Samples are what is judged: uint8 images, or normalized numbers. Files have the units of the data.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageColor, ImageDraw

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.files import save_text
from diffusion_jax.data import columns as of_table
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.report import pictures, scatter, sounds, style, table_figure

html = deferred("diffusion_jax.report.html")

SERIES = (96, 64)  # width and height of the tile of a series, in pixels
FINER = 4  # lines are drawn so many times larger and then reduced, which smooths them
SLICES = 9  # of a volume, at most
PLAYED = 200  # sounds of a page, at most
EDGE = 3  # white pixels around the slices of a volume
NAMED = 3  # channels whose values the foot of a picture names, at most


class Media(NamedTuple):
    """How samples of one kind are shown and written.

    Attributes:
      name: of one sample, for messages: 'image', 'series', 'volume', 'vector', 'sound' or
        'point'.
      plural: of several.
      arrays: samples (N, ...) -> the arrays of the .npz file, in the units of the data.
      tiles: samples (N, ...) -> a tile of each, (N, h, w, C) uint8.
      of_sets: whether a picture of them is a plot of the whole set, next to real data.
      table: (samples (N, ...), labels (N,) or None) -> lines of a .csv file; None where the samples
        are no table.
      figure: draws a plot of sets, as scatter.sets.
      players: samples (N, ...) -> an audio player of each, for a page; None for what is no sound.
      note: what tiles show in the units of the data, for the foot of a picture of them.
    """

    name: str
    plural: str
    arrays: Callable[[np.ndarray], dict[str, np.ndarray]]
    tiles: Callable[[np.ndarray], np.ndarray]
    of_sets: bool = False
    table: Callable[[np.ndarray, np.ndarray | None], list[str]] | None = None
    figure: Callable[..., None] = scatter.sets
    players: Callable[[np.ndarray], list[Markup]] | None = None
    note: str = ""


def media_of(shape: Sequence[int], normalization: Normalization | None) -> Media:
    """Choose how samples of a shape are shown and written.

    Args:
      shape: (N_1, ..., N_d, C) of a sample.
      normalization: of the data set; None for images of 8 bits and points in a plane.
    """
    if normalization is None:
        if len(shape) == 3:
            return Media("image", "images", _images, np.asarray)
        return Media("point", "points", _images, _points, of_sets=True)
    if normalization.columns:
        return _rows(normalization)
    if normalization.sound:
        own = (functools.partial(f, normalization) for f in (sounds.arrays, sounds.tiles))
        players = functools.partial(sounds.players, normalization)
        return Media("sound", "sounds", *own, players=players)
    name, plural, draw = {
        1: ("vector", "vectors", bars),
        2: ("series", "series", lines),
        3: ("image", "images", shades),
        4: ("volume", "volumes", slices),
    }[len(shape)]
    arrays, tiles = (functools.partial(f, normalization) for f in (_data, _drawn))
    tiles = functools.partial(tiles, draw)
    table = functools.partial(_table, normalization) if len(shape) == 1 else None
    figure = functools.partial(scatter.in_units, normalization)
    known = {"of_sets": len(shape) == 1, "table": table, "note": _note(normalization, shape)}
    return Media(name, plural, arrays, tiles, figure=figure, **known)


def _note(normalization: Normalization, shape: Sequence[int]) -> str:
    """The values between which tiles of arrays are drawn, in the units of the data."""
    spans = [f"{a:.4g} to {b:.4g}" for a, b in zip(normalization.low, normalization.high)]
    if len(shape) == 2:
        named = [
            f"channel {i} ({style.NAMES[i]}) {spans[i]}" for i in range(min(len(spans), NAMED))
        ]
        named = named if len(spans) > 1 else spans
        more = ", ..." * (len(spans) > NAMED)
        return f"to the right: {shape[0]} values; upward: {', '.join(named)}{more}"
    if len(shape) == 1:
        return ""
    return f"from black to white: {', '.join(spans[:NAMED])}{', ...' * (len(spans) > NAMED)}"


def _rows(normalization: Normalization) -> Media:
    """The rows of a table."""
    return Media(
        "row",
        "rows",
        functools.partial(_data, normalization),
        functools.partial(_drawn, normalization, bars),
        of_sets=True,
        table=functools.partial(_cells, normalization),
        figure=functools.partial(table_figure.figure, normalization),
    )


def grid(
    media: Media,
    samples: np.ndarray,
    path: str | os.PathLike,
    *,
    columns: int,
    row_labels: Sequence[Any] | None = None,
    labels: Sequence[int] = (),
    names: Sequence[str] = (),
    real: np.ndarray | None = None,
) -> None:
    """Write a picture of samples.

    Args:
      media: what they are.
      samples: (N, ...).
      path: the file to write.
      columns: samples in a row of tiles.
      row_labels: texts to the left of the rows.
      labels: (N,), classes by which tiles are grouped instead; () for none.
      names: of the classes by number.
      real: samples of the data, where media.of_sets and where they are known.
    """
    if media.of_sets:
        media.figure(real, {"samples": samples}, path)
        return
    tiles = media.tiles(samples)
    if len(labels):
        picture = pictures.grid_by_class(tiles, labels, names, note=media.note)
    else:
        picture = pictures.image_grid(tiles, columns, row_labels=row_labels, note=media.note)
    pictures.save(picture, path)


def conditioned_grid(
    media: Media,
    conditions: np.ndarray,
    samples: np.ndarray,
    truth: np.ndarray | None,
    path: str | os.PathLike,
    *,
    columns: int = 4,
) -> None:
    """Write a picture of samples between their dense conditions and the truth.

    Args:
      media: what samples are.
      conditions: (N, ...), what is seen of each sample, as a sample.
      samples: (N, ...).
      truth: (N, ...), or None where it is not known.
      path: the file to write.
      columns: number of examples in a row.
    """
    parts = {"condition": conditions, "sample": samples}
    parts |= {} if truth is None else {"truth": truth}
    tiles = np.stack([media.tiles(part) for part in parts.values()], 1)
    columns = min(columns, len(samples))
    picture = pictures.image_grid(
        tiles.reshape(-1, *tiles.shape[2:]),
        columns * len(parts),
        column_labels=[*parts] * columns,
        note=media.note,
    )
    pictures.save(picture, path)


def save_table(
    media: Media, samples: np.ndarray, path: str | os.PathLike, labels: np.ndarray | None = None
) -> Path | None:
    """Write samples as a table next to another file, where they are one.

    Args:
      media: what they are.
      samples: (N, ...).
      path: the other file, whose ending becomes .csv.
      labels: (N,), where they are known.

    Returns:
      The file, or None.
    """
    if media.table is None:
        return None
    file = Path(path).with_name(Path(path).name.removesuffix(".npz") + ".csv")
    save_text(file, "\n".join([*media.table(samples, labels), ""]))
    return file


def save_sounds(
    media: Media,
    samples: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    seeds: Sequence[int],
    labels: Sequence[int],
    names: Sequence[str],
) -> list[Path]:
    """Write samples as WAV files and a page with players, where they are sounds.

    Args:
      media: what they are.
      samples: (N, ...).
      arrays: what media.arrays returned for them.
      path: the .npz file; its ending becomes .html, and the files are in a folder STEM_sounds.
      seeds: of the samples.
      labels: (N,), classes; () for none.
      names: of the classes by number.

    Returns:
      The folder and the page; [] for what is not heard.
    """
    if media.players is None:
        return []
    stem = Path(path).name.removesuffix(".npz")
    folder, page = (Path(path).with_name(f"{stem}{end}") for end in ("_sounds", ".html"))
    own = sounds.names(seeds, labels, names)
    sounds.save(folder, own, arrays)
    heard = zip(media.tiles(samples[:PLAYED]), media.players(samples[:PLAYED]))
    figures = {
        name: html.picture(tile, "spectrogram") + player for name, (tile, player) in zip(own, heard)
    }
    html.save(page, html.page("Sounds", [("Samples", html.side_by_side(figures))]))
    return [folder, page]


# ---- tiles of numbers in [0, 1]
def bars(values: np.ndarray) -> np.ndarray:
    """Draw each vector as bars, from the left to the right.

    Args:
      values: (N, D), in [0, 1].

    Returns:
      (N, h, w, 3) uint8.
    """
    width, height = SERIES
    levels = np.linspace(1, 0, height)[:, None]
    column = np.arange(width) * values.shape[1] // width
    filled = values[:, None, column] >= levels
    gap = np.diff(column, append=-1) != 0 if values.shape[1] <= width // 4 else False
    color = ImageColor.getrgb(style.COLORS[0])
    tiles = np.where((filled & ~np.asarray(gap))[..., None], color, 255).astype(np.uint8)
    tiles[:, [0, -1]] = tiles[:, :, [0, -1]] = ImageColor.getrgb(style.RULE)
    return tiles


def lines(values: np.ndarray) -> np.ndarray:
    """Draw each series as a line for each channel, on one scale.

    Args:
      values: (N, L, C), in [0, 1].

    Returns:
      (N, h, w, 3) uint8.
    """
    width, height = (FINER * side for side in SERIES)
    edge = 3 * FINER
    tiles = []
    for sample in values:
        canvas = Image.new("RGB", (width, height), style.PAPER)
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 0, width - 1, height - 1), outline=style.RULE, width=FINER)
        x = np.linspace(edge, width - 1 - edge, len(sample))
        for channel in range(sample.shape[1] - 1, -1, -1):
            y = (height - 1 - edge) - (height - 1 - 2 * edge) * sample[:, channel]
            color = ImageColor.getrgb(style.COLORS[channel % len(style.COLORS)])
            points = list(zip(x.tolist(), y.tolist()))
            if len(points) == 1:
                points = [(edge, points[0][1]), (width - 1 - edge, points[0][1])]
            draw.line(points, fill=color, width=FINER + FINER // 2, joint="curve")
        tiles.append(np.asarray(canvas.resize(SERIES, Image.Resampling.BOX)))
    return np.stack(tiles)


def shades(values: np.ndarray) -> np.ndarray:
    """Show numbers as levels, and enlarge small images.

    Args:
      values: (N, H, W, C), in [0, 1].

    Returns:
      (N, h, w, 3) uint8.
    """
    levels = pictures.rgb(np.rint(255 * values).astype(np.uint8))
    scale = max(1, round(48 / levels.shape[1]))
    return levels.repeat(scale, 1).repeat(scale, 2)


def slices(values: np.ndarray) -> np.ndarray:
    """Show volumes as slices across their first axis, evenly spaced, in reading order.

    Args:
      values: (N, D, H, W, C), in [0, 1].

    Returns:
      (N, h, w, 3) uint8.
    """
    depth = values.shape[1]
    places = np.unique(np.linspace(0, depth - 1, min(SLICES, depth)).round().astype(int))
    levels = [pictures.rgb(np.rint(255 * volume).astype(np.uint8)) for volume in values[:, places]]
    rows = math.isqrt(len(places))
    scale = max(1, round(32 / levels[0].shape[1]))
    sheets = [pictures.mosaic(own, rows, scale=scale, gap=1) for own in levels]
    around = ((0, 0), (EDGE, EDGE), (EDGE, EDGE), (0, 0))
    return np.pad(np.stack(sheets), around, constant_values=255)


def _points(samples: np.ndarray) -> np.ndarray:
    return bars(np.clip((samples + 1) / 2, 0, 1))


def _drawn(
    normalization: Normalization, draw: Callable[[np.ndarray], np.ndarray], samples: np.ndarray
) -> np.ndarray:
    return draw(normalization.unit(samples))


# ---- arrays of files
def _images(samples: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": samples}


def _data(normalization: Normalization, samples: np.ndarray) -> dict[str, np.ndarray]:
    return {"data": normalization.decode(samples)}


def _cells(
    normalization: Normalization, samples: np.ndarray, labels: np.ndarray | None
) -> list[str]:
    return of_table.text(normalization.columns, normalization.values(samples), labels)


def _table(
    normalization: Normalization, samples: np.ndarray, labels: np.ndarray | None
) -> list[str]:
    values = normalization.decode(samples)
    head = ",".join(f"x{i + 1}" for i in range(values.shape[1]))
    return [head, *(",".join(format(number, ".8g") for number in row) for row in values.tolist())]
