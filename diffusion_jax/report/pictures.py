"""Images as grids, strips and mosaics, with labels.

Images are (N, H, W, C), of any number of channels, uint8 or floating in [-1, 1]. Functions that
return a PIL.Image leave it to the caller to write it with `save`.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import atomic_path
from diffusion_jax.data.transforms import to_uint8
from diffusion_jax.evaluation import metrics
from diffusion_jax.report import style
from diffusion_jax.report.layout import Tile, lay_out

CHANNELS = 8  # of an image that is neither gray nor in color, which are shown

VERDICT = ("accuracy", "frechet", "sliced_wasserstein", "error")  # metrics of a caption


def image_grid(
    images: np.ndarray,
    columns: int,
    *,
    scale: int | None = None,
    row_labels: Sequence[Any] | None = None,
    column_labels: Sequence[Any] | None = None,
    title: str | None = None,
    note: str = "",
) -> Image.Image:
    """Images in rows.

    Args:
      images: (N, H, W, C), uint8 or floating in [-1, 1].
      columns: images of a row.
      scale: each pixel is enlarged to scale x scale; None makes an image about 48 pixels high.
      row_labels: texts to the left of the rows, such as captions, broken into lines.
      column_labels: texts above the columns.
      title: stands at the top.
      note: stands at the foot.
    """
    tiles = rgb(images)
    rows = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return lay_out(
        [[Tile(_enlarge(tile, scale)) for tile in row] for row in rows],
        row_labels=row_labels,
        column_labels=column_labels,
        title=title,
        note=note,
    )


def grid_by_class(
    images: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    columns: int = 16,
    scale: int | None = None,
    note: str = "",
) -> Image.Image:
    """Images in a row for each class, with its name, in the order of the first image of each.

    A class of more than `columns` images has several rows. If there are many classes of one or two
    images, the names stand beneath the images instead, ten in a row.

    Args:
      images: uint8 or floating in [-1, 1].
      labels: (N,), numbers of `names`.
      names: the names of the classes, by number.
      columns: images of a row, at most.
      scale: as in `image_grid`.
      note: stands at the foot.
    """
    tiles, groups = [_enlarge(tile, scale) for tile in rgb(images)], {}
    for tile, label in zip(tiles, np.asarray(labels).tolist()):
        groups.setdefault(label, []).append(tile)
    if len(groups) > 20 and len(tiles) <= 2 * len(groups):
        cells = [
            Tile(tile, "\n".join(textwrap.wrap(names[label], 14)))
            for label, own in groups.items()
            for tile in own
        ]
        return lay_out([cells[i : i + 10] for i in range(0, len(cells), 10)], gap=8, note=note)
    rows, row_labels = [], []
    for label, own in groups.items():
        parts = [own[i : i + columns] for i in range(0, len(own), columns)]
        rows += [[Tile(tile) for tile in part] for part in parts]
        row_labels += [names[label]] + [""] * (len(parts) - 1)
    return lay_out(rows, row_labels=row_labels, note=note)


def denoising_strip(
    x_t: np.ndarray,
    x0_hat: np.ndarray,
    times: Sequence[float],
    *,
    caption: str = "t = {:.2f}",
    columns: int = 10,
    images: int = 3,
    scale: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """Sampling as it proceeds: for each image x_t above and x0-hat below, a column for each time.

    x_t is shown divided by its own range wherever that is wider than [-1, 1], so that a
    variance-exploding path can be seen too.

    Args:
      x_t: (S, N, H, W, C) floating, in the order of sampling.
      x0_hat: (S, N, H, W, C) floating.
      times: (S,) times.
      caption: the format of a time, such as 'logSNR {:.1f}'.
      columns: the number of times that are shown, at most.
      images: the number of images that are shown, at most.
      scale: as in `image_grid`.
      title: stands at the top.

    Raises:
      UserError: if x_t, x0_hat and times have different lengths.
    """
    x_t, x0_hat, times = np.asarray(x_t), np.asarray(x0_hat), np.asarray(times)
    if not len(x_t) == len(x0_hat) == len(times):
        raise UserError(
            "a denoising strip needs x_t, x0_hat and a time for each step; got "
            f"{len(x_t)}, {len(x0_hat)}, {len(times)}"
        )
    steps = np.unique(np.linspace(0, len(times) - 1, min(columns, len(times))).round().astype(int))
    rows, labels = [], []
    for i in range(min(images, x_t.shape[1])):
        rows.append([Tile(_enlarge(rgb(_into_range(x_t[s, i : i + 1]))[0], scale)) for s in steps])
        rows.append([Tile(_enlarge(rgb(x0_hat[s, i : i + 1])[0], scale)) for s in steps])
        labels += ["x\u209c", "x\u0302\u2080"]
    captions = [caption.format(times[s]) for s in steps]
    return lay_out(rows, row_labels=labels, column_labels=captions, title=title, rows_in_group=2)


def strips(
    tiles: Mapping[tuple[Any, Any], np.ndarray],
    path: str | os.PathLike,
    *,
    captions: Mapping[tuple[Any, Any], str] | None = None,
    columns: Mapping[Any, str],
    title: str | None = None,
    note: str = "",
    above: Mapping[str, np.ndarray] | None = None,
) -> None:
    """A table of pictures: one row for each sampler, one column for each budget.

    Args:
      tiles: (row, column) -> (h, w, 3) uint8, such as `mosaic` and `density` make; rows stand in
        the order of their first tile.
      path: the file to write.
      captions: (row, column) -> what is written beneath, in one line or several.
      columns: column -> heading, in order.
      title: stands at the top.
      note: stands at the foot.
      above: name -> tile of what belongs to no column, such as real data; these stand above the
        headings.
    """
    rows = list(dict.fromkeys(row for row, _ in tiles))
    captions = captions or {}

    def cell(row: Any, column: Any) -> Tile | None:
        return (
            Tile(tiles[row, column], captions.get((row, column), ""))
            if (row, column) in tiles
            else None
        )

    cells = [[cell(row, column) for column in columns] for row in rows]
    save(
        lay_out(
            cells,
            row_labels=rows,
            column_labels=list(columns.values()),
            title=title,
            note=note,
            gap=16,
            above=[Tile(tile, name) for name, tile in (above or {}).items()],
        ),
        path,
    )


def mosaic(
    images: np.ndarray, rows: int = 2, *, scale: int | None = None, gap: int = 2
) -> np.ndarray:
    """Images as one tile.

    Args:
      images: (N, H, W, C), uint8 or floating in [-1, 1].
      rows: the number of rows.
      scale: as in `image_grid`.
      gap: pixels between the images.

    Returns:
      The tile, (h, w, 3) uint8.
    """
    tiles = [_enlarge(tile, scale) for tile in rgb(images)]
    columns, (h, w) = math.ceil(len(tiles) / rows), tiles[0].shape[:2]
    sheet = np.full(
        (math.ceil(len(tiles) / columns) * (h + gap) - gap, columns * (w + gap) - gap, 3),
        255,
        np.uint8,
    )
    for i, tile in enumerate(tiles):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = tile
    return sheet


def density(
    points: np.ndarray, box: tuple[Sequence[float], Sequence[float]], *, side: int = 110
) -> np.ndarray:
    """The density of points as a tile, dark where they are dense.

    The shade is the square root of the count in a cell of two pixels, on the scale of the densest
    percent of the cells that are not empty.

    Args:
      points: (N, D), of which the first two coordinates are shown.
      box: the lower and the upper corner.
      side: pixels of the tile.

    Returns:
      The tile, (side, side, 3) uint8.
    """
    low, high = np.asarray(box, float)[:, :2]
    points = np.asarray(points, float)[:, :2]
    counts = np.histogram2d(
        *points[np.isfinite(points).all(1)].T, bins=side // 2, range=list(zip(low, high))
    )[0].T[::-1]
    shade = (
        np.sqrt(counts / max(np.quantile(counts[counts > 0], 0.99), 1.0))
        if counts.any()
        else counts
    )
    shade = np.minimum(shade, 1.0)[..., None].repeat(2, 0).repeat(2, 1)
    sheet = 247 + shade * (np.array([8, 48, 107]) - 247)
    return sheet.round().astype(np.uint8)


def verdict(row: Mapping[str, Any], features: str) -> str:
    """Write the scores of a cell with their names and units, one a line.

    Args:
      row: scores by metric, of which those of VERDICT are shown if they are finite numbers, and
        'intervals', half the widths, where known.
      features: what the scores depend on, which is named; '' for scores of points.
    """
    half = row.get("intervals", {})
    return "\n".join(
        f"{metrics.find(key, features).title} {metrics.find(key).text(row[key], half.get(key))}"
        for key in VERDICT
        if style.is_number(row.get(key))
    )


def save(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture, atomically.

    Args:
      image: the picture.
      path: the file, whose suffix is the format, such as .png.
    """
    with atomic_path(path) as temporary:
        image.save(temporary)


def rgb(images: np.ndarray) -> np.ndarray:
    """Show images of any number of channels in color.

    One channel is gray, three are RGB, and four are RGB with opacity, which is laid on white paper.
    Any others are shown in gray side by side, eight of them at most.

    Args:
      images: (N, H, W, C), uint8 or floating in [-1, 1].

    Returns:
      (N, H, W', 3) uint8.

    Raises:
      UserError: for anything but images.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.shape[-1]:
        raise UserError(f"a picture needs images (N, H, W, C); got {images.shape}")
    images = images if images.dtype == np.uint8 else to_uint8(images)
    channels = images.shape[-1]
    if channels == 4:
        opacity = images[..., 3:] / np.float32(255)
        return np.rint(opacity * images[..., :3] + 255 * (1 - opacity)).astype(np.uint8)
    if channels not in (1, 3):
        parts = [images[..., i : i + 1] for i in range(min(channels, CHANNELS))]
        images = np.concatenate(parts, axis=2)
    return np.broadcast_to(images, images.shape[:-1] + (3,))


def _enlarge(tile: np.ndarray, scale: int | None) -> np.ndarray:
    """Enlarge by a whole number, so that every pixel of the data stays visible as it is."""
    scale = max(1, round(48 / tile.shape[0])) if scale is None else scale
    return tile.repeat(scale, 0).repeat(scale, 1)


def _into_range(x: np.ndarray) -> np.ndarray:
    return x / max(1.0, float(np.quantile(np.abs(x), 0.99)))
