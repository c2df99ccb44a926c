"""Restored arrays next to the truth, with what was measured and what was imputed in two colors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageColor

from diffusion_jax.core.files import save_text
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.report import media, pictures, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANNELS = 4  # of a series that are shown, at most
TRUTH, KNOWN, DRAWN = "#9a9a9a", style.COLORS[0], style.COLORS[1]
HIDDEN = "#F2C9A5"  # of values that were not measured: a pale DRAWN


def series(
    given: np.ndarray,
    draws: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray | None,
    path: str | os.PathLike,
) -> None:
    """Draw series as lines: the truth, what was measured, and each result in another color.

    Args:
      given: (N, L, C) the measurements, in the units of the data.
      draws: (K, N, L, C) the results.
      truth: (N, L, C) the true series.
      known: (L, C), where values were measured; None where a measurement is not of single values.
      path: the file to write. A series of several channels is a row with a panel for each.
    """
    count, channels = len(truth), min(truth.shape[-1], CHANNELS)
    columns = channels if channels > 1 else 2 if count > 1 else 1
    rows = -(-count * channels // columns)
    height = 1.5 if rows > 1 else 2.2
    with style.figure(path, count * channels, (5.4, height), rows) as axes:
        for place, axis in enumerate(axes):
            i, channel = divmod(place, channels)
            at = None if known is None else known[:, channel]
            own = [values[i, :, channel] for values in (given, truth)]
            _series(axis, own[0], draws[:, i, :, channel], own[1], at)
            if channels > 1 and i == 0:
                axis.set(title=f"channel {channel}")
            axis.tick_params(labelbottom=place >= len(axes) - columns)
        axes[0].legend(fontsize=7.5, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3)


def _series(
    axis: Axes, given: np.ndarray, draws: np.ndarray, truth: np.ndarray, known: np.ndarray | None
) -> None:
    """One channel of one series."""
    axis.plot(truth, color=TRUTH, linewidth=2.4, label="truth")
    shade = 1.0 if len(draws) == 1 else 0.55
    for number, draw in enumerate(draws):
        if known is not None:
            draw = np.where(_widened(~known), draw, np.nan)
        label = "restored" if number == 0 else None
        axis.plot(draw, color=DRAWN, linewidth=1.0, alpha=shade, label=label)
    if known is None:
        axis.plot(given, color=KNOWN, linewidth=1.0, linestyle=":", label="measured")
        return
    line = np.where(known, given, np.nan)
    alone = known & ~np.roll(known, 1) & ~np.roll(known, -1)
    style_of_points = {"marker": ".", "markersize": 4} if alone.any() else {}
    axis.plot(line, color=KNOWN, linewidth=1.4, label="measured", **style_of_points)


def _widened(where: np.ndarray) -> np.ndarray:
    """Places next to those, too, so that a line joins the measured values."""
    return where | np.append(where[1:], False) | np.insert(where[:-1], 0, False)


def strips(
    shown: media.Media,
    normalization: Normalization,
    given: np.ndarray,
    draws: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray | None,
    path: str | os.PathLike,
) -> None:
    """Draw rows of tiles: measurements, results and truth; what was not measured is colored.

    Args:
      shown: how samples are shown.
      normalization: of the data.
      given: (N, ...) the measurements, normalized.
      draws: (K, N, ...) the results.
      truth: (N, ...) the true samples.
      known: (N_1, ..., C), where values were measured; None where a measurement is not of single
        values.
      path: the file to write.
    """
    first = shown.tiles(given)
    if known is not None:
        color = np.array(ImageColor.getrgb(HIDDEN), np.uint8)
        first = np.where(_hidden(shown, normalization, known), color, first)
    rows = [first, *map(shown.tiles, draws), shown.tiles(truth)]
    names = ["measured", *(["restored"] * len(draws)), "truth"]
    pictures.save(pictures.image_grid(np.concatenate(rows), len(truth), row_labels=names), path)


def _hidden(shown: media.Media, normalization: Normalization, known: np.ndarray) -> np.ndarray:
    """The pixels of a tile that show values that were not measured, (h, w, 1)."""
    extremes = normalization.encode(np.array([normalization.low, normalization.high]))
    tile = shown.tiles(np.where(known, extremes[1], extremes[0])[None])[0]
    return (tile < 128).all(-1, keepdims=True)


def save_parts(
    shown: media.Media,
    parts: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    labels: np.ndarray | None = None,
) -> list[Path]:
    """Write edited samples in the format of their kind, where that is a table or a sound.

    Args:
      shown: how samples are written.
      parts: (N, ...) each, by name: such as what was measured, what was made of it, and the truth.
      path: another file of the same stem.
      labels: (N,), where they are known: a column of a table.

    Returns:
      A CSV file whose first column is the name of the part; or a folder of WAV files and a page
      with players; or nothing.
    """
    names, values = list(parts), list(parts.values())
    stem = Path(path).with_suffix("")
    if shown.table is not None:
        tables = [shown.table(own, labels) for own in values]
        lines = [f"part,{tables[0][0]}"]
        for name, table in zip(names, tables):
            cell = name.replace('"', '""')
            lines += [f'"{cell}",{line}' for line in table[1:]]
        file = stem.with_name(f"{stem.name}.csv")
        save_text(file, "\n".join([*lines, ""]))
        return [file]
    if shown.players is None:
        return []
    count = len(values[0])  # of each sample all parts, one after another
    samples = np.stack(values, 1).reshape(-1, *values[0].shape[1:])
    return media.save_sounds(
        shown,
        samples,
        shown.arrays(samples),
        stem.with_name(f"{stem.name}.npz"),
        seeds=np.repeat(np.arange(count), len(names)).tolist(),
        labels=np.tile(np.arange(len(names)), count),
        names=names,
    )
