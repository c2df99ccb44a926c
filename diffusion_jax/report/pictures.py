"""Grids of images as pictures, with labels."""

from __future__ import annotations

import functools
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.data.transforms import to_uint8
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import metrics
from diffusion_jax.files import atomic_path
from diffusion_jax.report import curves

TEXT = 13  # pixels, in pictures
LINE = 40  # letters, of a label to the left of a row

VERDICT = ("accuracy", "frechet", "sliced_wasserstein", "error")  # metrics of a caption


# ---- pictures ----
def image_grid(
    images: np.ndarray,
    columns: int,
    *,
    scale: int | None = None,
    row_labels: Sequence[Any] | None = None,
    column_labels: Sequence[Any] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Images (N, H, W, C) in rows of `columns`, each pixel enlarged to scale x scale (None: about
    48 pixels a side).

    row_labels, such as captions, stand to the left, broken into lines of LINE letters.
    """
    tiles = _rgb(images)
    rows = [list(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return _lay_out(
        [[_Cell(_enlarge(tile, scale)) for tile in row] for row in rows],
        row_labels=row_labels,
        column_labels=column_labels,
        title=title,
    )


def grid_by_class(
    images: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    *,
    columns: int = 16,
    scale: int | None = None,
) -> Image.Image:
    """Images (N, H, W, C) in a row for each class, with its name, in the order of the first of
    each.

    A class of more than `columns` images has several rows. Where there are many classes of one or
    two images, the names stand beneath the images instead, ten in a row.

    Args:
      images: uint8 or floating in [-1, 1].
      labels: (N,), numbers of `names`.
      names: of the classes, by number.
      columns: images of a row, at most.
      scale: as in `image_grid`.
    """
    tiles, groups = [_enlarge(tile, scale) for tile in _rgb(images)], {}
    for tile, label in zip(tiles, np.asarray(labels).tolist()):
        groups.setdefault(label, []).append(tile)
    if len(groups) > 20 and len(tiles) <= 2 * len(groups):
        cells = [
            _Cell(tile, "\n".join(textwrap.wrap(names[label], 14)))
            for label, own in groups.items()
            for tile in own
        ]
        return _lay_out([cells[i : i + 10] for i in range(0, len(cells), 10)], gap=8)
    rows, told = [], []
    for label, own in groups.items():
        parts = [own[i : i + columns] for i in range(0, len(own), columns)]
        rows += [[_Cell(tile) for tile in part] for part in parts]
        told += [names[label]] + [""] * (len(parts) - 1)
    return _lay_out(rows, row_labels=told)


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
    """The way from noise to a picture: for each image x_t above and x0-hat below, one column for
    each time shown.

    x_t, x0_hat: (S, N, H, W, C) floating, in the order of sampling; times (S,), written by
    `caption` (perhaps 'logSNR {:.1f}'). x_t is shown divided by its own range wherever that is
    wider than [-1, 1], so that a variance-exploding path can be seen too.
    """
    x_t, x0_hat, times = np.asarray(x_t), np.asarray(x0_hat), np.asarray(times)
    if not len(x_t) == len(x0_hat) == len(times):
        raise UserError(
            f"a denoising strip needs x_t, x0_hat and a time for each step; got {len(x_t)}, {len(x0_hat)}, {len(times)}"
        )
    steps = np.unique(np.linspace(0, len(times) - 1, min(columns, len(times))).round().astype(int))
    rows, labels = [], []
    for i in range(min(images, x_t.shape[1])):
        rows.append(
            [_Cell(_enlarge(_rgb(_into_range(x_t[s, i : i + 1]))[0], scale)) for s in steps]
        )
        rows.append([_Cell(_enlarge(_rgb(x0_hat[s, i : i + 1])[0], scale)) for s in steps])
        labels += ["x\u209c", "x\u0302\u2080"]
    captions = [caption.format(times[s]) for s in steps]
    return _lay_out(rows, row_labels=labels, column_labels=captions, title=title, rows_in_group=2)


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

    def cell(row: Any, column: Any) -> _Cell | None:
        return (
            _Cell(tiles[row, column], captions.get((row, column), ""))
            if (row, column) in tiles
            else None
        )

    cells = [[cell(row, column) for column in columns] for row in rows]
    save(
        _lay_out(
            cells,
            row_labels=rows,
            column_labels=list(columns.values()),
            title=title,
            note=note,
            gap=16,
            above=[_Cell(tile, name) for name, tile in (above or {}).items()],
        ),
        path,
    )


def mosaic(
    images: np.ndarray, rows: int = 2, *, scale: int | None = None, gap: int = 2
) -> np.ndarray:
    """Images (N, H, W, C) as one tile (h, w, 3) uint8 of `rows` rows, each pixel enlarged as in
    `image_grid`.
    """
    tiles = [_enlarge(tile, scale) for tile in _rgb(images)]
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
    """The first two coordinates of points (N, D) as a picture (side, side, 3), dark where they lie
    densely.

    box: lower and upper corner. The shade is the square root of the count in a cell of two pixels,
    on the scale of the densest percent of those that are not empty.
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


def verdict(row: Mapping[str, Any]) -> str:
    """The numbers of a cell with their names and units, a line for each of VERDICT that it has."""
    return "\n".join(
        f"{metrics.find(key).title} {metrics.find(key).text(row[key])}"
        for key in VERDICT
        if curves._number(row.get(key))
    )


def save(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture, atomically; the suffix of the path is its format."""
    with atomic_path(path) as temporary:
        image.save(temporary)


class _Cell(NamedTuple):
    tile: np.ndarray  # (h, w, 3) uint8
    caption: str = ""


def _lay_out(
    rows: Sequence[Sequence[_Cell | None]],
    *,
    row_labels: Sequence[Any] | None = None,
    column_labels: Sequence[Any] | None = None,
    title: str | None = None,
    note: str = "",
    gap: int = 3,
    rows_in_group: int | None = None,
    above: Sequence[_Cell] = (),
) -> Image.Image:
    """A table of pictures on white paper: the only place that knows about margins and text."""
    rows_of_text = ["\n".join(textwrap.wrap(str(label), LINE)) for label in row_labels or []]
    columns_of_text = [str(label) for label in column_labels or []]
    count = max((len(row) for row in rows), default=0)
    cells = [cell for row in rows for cell in row if cell is not None]
    if not cells:
        raise UserError("there is no image to show; ask for at least one")
    width = max(
        [cell.tile.shape[1] for cell in cells]
        + [_width(cell.caption) for cell in cells if cell.caption]
    )
    width = max([width] + [_width(text) + 6 for text in columns_of_text])
    height = max(cell.tile.shape[0] for cell in cells) + max(
        _height(cell.caption) for cell in cells
    )
    height = max([height] + [(text.count("\n") + 1) * (TEXT + 5) for text in rows_of_text])

    margin = 10
    left = margin + (max(_width(text) for text in rows_of_text) + 10 if rows_of_text else 0)
    first = margin + (TEXT + 16 if title else 0)
    room = max((cell.tile.shape[0] + _height(cell.caption) + 10 for cell in above), default=0)
    top = first + room + (TEXT + 8 if columns_of_text else 0)
    step_x, step_y, extra = width + gap, height + gap, 10
    groups = (len(rows) - 1) // rows_in_group if rows_in_group else 0
    places = np.cumsum(
        [left] + [max(cell.tile.shape[1], _width(cell.caption)) + gap for cell in above]
    )
    right = max(
        left + count * step_x - gap,
        margin + _width(title or "", bold=True),
        margin + _width(note),
        int(places[-1]) - gap,
    )
    full_width = right + margin
    full_height = (
        top + len(rows) * step_y - gap + groups * extra + (TEXT + 12 if note else 0) + margin
    )
    canvas = Image.new("RGB", (full_width, full_height), curves.PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text(
        (full_width - margin, full_height - margin),
        note,
        font=_font(),
        fill=curves.FAINT,
        anchor="rs",
    )
    if title:
        draw.text((margin, margin), title, font=_font(bold=True), fill=curves.INK)
    for x, cell in zip(places, above):
        _draw(canvas, draw, cell, int(x), first, max(cell.tile.shape[1], _width(cell.caption)))
    for c, text in enumerate(columns_of_text[:count]):
        draw.text(
            (left + c * step_x + width / 2, top - 6),
            text,
            font=_font(),
            fill=curves.INK,
            anchor="ms",
        )
    for r, row in enumerate(rows):
        y = top + r * step_y + (r // rows_in_group * extra if rows_in_group else 0)
        if r < len(rows_of_text):
            middle = y + max(cell.tile.shape[0] for cell in cells) / 2
            draw.text(
                (left - 10, middle),
                rows_of_text[r],
                font=_font(),
                fill=curves.INK,
                anchor="rm",
                align="right",
            )
        for c, cell in enumerate(row):
            if cell is not None:
                _draw(canvas, draw, cell, left + c * step_x, y, width)
    return canvas


def _draw(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, cell: _Cell, x: int, y: int, width: int
) -> None:
    """A tile in the middle of `width` pixels from x, with its caption beneath."""
    canvas.paste(Image.fromarray(cell.tile), (x + (width - cell.tile.shape[1]) // 2, y))
    for i, line in enumerate(cell.caption.split("\n")):
        beneath = (x + width / 2, y + cell.tile.shape[0] + TEXT + 3 + i * (TEXT + 4))
        draw.text(beneath, line, font=_font(), fill=curves.INK, anchor="ms")


def _height(caption: str) -> int:
    """Of a caption beneath a tile, in pixels."""
    return (caption.count("\n") + 1) * (TEXT + 4) + 4 if caption else 0


def _rgb(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1 or 3), uint8 or floating in [-1, 1] -> (N, H, W, 3) uint8."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"a picture needs images (N, H, W, C) with one or three channels; got {images.shape}"
        )
    images = images if images.dtype == np.uint8 else to_uint8(images)
    return np.broadcast_to(images, images.shape[:-1] + (3,))


def _enlarge(tile: np.ndarray, scale: int | None) -> np.ndarray:
    """Nearest neighbour by a whole number: every pixel of the data stays visible as what it is."""
    scale = max(1, round(48 / tile.shape[0])) if scale is None else scale
    return tile.repeat(scale, 0).repeat(scale, 1)


def _into_range(x: np.ndarray) -> np.ndarray:
    return x / max(1.0, float(np.quantile(np.abs(x), 0.99)))


@functools.cache
def _font(bold: bool = False) -> ImageFont.ImageFont:
    """DejaVu Sans as matplotlib carries it: one face for pictures and curves (Pillow's own has no
    subscripts).
    """
    return ImageFont.truetype(
        f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", TEXT
    )


def _width(text: str, bold: bool = False) -> int:
    return math.ceil(max(_font(bold).getlength(line) for line in text.split("\n")))
