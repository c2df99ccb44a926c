"""Animations of sampling: tiles and frames, and the GIF that they are written to.

Frames are PIL images of one size, such as `layout.lay_out` returns. `save_gif` gives all of them
one palette, without dithering, so that what does not change from frame to frame costs nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import atomic_path
from diffusion_jax.report import pictures, style
from diffusion_jax.report.layout import Tile, lay_out

PANEL = 280  # pixels, about the width of a panel of images
SHADE = ImageColor.getrgb("#08306b")  # where the density is highest
PAPER = 249  # the gray level where it is zero
POINT, TAIL = style.COLORS[1], "#e9a57c"
NEARLY_WHITE = 250  # a color of the palette that is lighter than this becomes white
SAMPLED = 12  # frames whose colors make the palette
FINER = 3  # points are drawn so many times larger and reduced, which smooths their edges

Box = tuple[Sequence[float], Sequence[float]]  # the lower and the upper corner


def save_gif(
    frames: Sequence[Image.Image],
    path: str | os.PathLike,
    *,
    fps: float = 12.0,
    first: float = 0.5,
    last: float = 2.0,
    colors: int = 64,
) -> None:
    """Write frames as an animated GIF that repeats, atomically.

    Equal frames in a row become one, and of every other frame only what changed is stored.

    Args:
      frames: pictures of one size, at least one.
      path: the file to write.
      fps: frames in a second; from 1 to 50.
      first: seconds that the first frame is shown.
      last: seconds that the last frame is shown.
      colors: the number of colors of all frames together, at most 255.

    Raises:
      UserError: if there is no frame.
    """
    if not frames:
        raise UserError("there is no frame to show; request at least one")
    palette = _palette(frames, colors)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # hundredths of a second are the unit of the format
    durations = [10 * round(100 / fps)] * len(frames)
    durations[0], durations[-1] = round(1000 * first), round(1000 * last)
    with atomic_path(path) as temporary:
        reduced[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=reduced[1:],
            duration=durations,
            loop=0,
            optimize=True,
            disposal=1,
        )


def _palette(frames: Sequence[Image.Image], colors: int) -> Image.Image:
    """An image whose palette suits all frames: the median cut of some, with white for paper."""
    chosen = evenly(len(frames), SAMPLED)
    width, height = (max(1, length // 2) for length in frames[0].size)
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for row, i in enumerate(chosen):
        half = frames[i].convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(half, (0, row * height))
    cut = sheet.quantize(min(colors, 255) - 1, method=Image.Quantize.MEDIANCUT, kmeans=1)
    found = np.reshape(cut.getpalette(), (-1, 3))
    found[(found >= NEARLY_WHITE).all(1)] = 255
    palette = Image.new("P", (1, 1))
    palette.putpalette([255, 255, 255, *found.ravel().tolist()])
    return palette


def evenly(count: int, most: int) -> np.ndarray:
    """Choose at most `most` of the numbers 0 to count - 1, evenly, with the first and the last.

    Args:
      count: how many there are, at least one.
      most: how many are chosen at most.

    Returns:
      The increasing numbers; the last alone if `most` is 1.
    """
    ends = (count - 1, count - 1) if most == 1 else (0, count - 1)
    return np.unique(np.linspace(*ends, min(most, count)).round().astype(int))


# ---- images
def image_frames(
    x_t: np.ndarray, x0_hat: np.ndarray, captions: Sequence[str], columns: int
) -> list[Image.Image]:
    """Frames of sampling: x_t on the left and x0-hat on the right, the same images in both.

    Args:
      x_t: (S, N, H, W, C) uint8, in the order of sampling.
      x0_hat: (S, N, H, W, C) uint8.
      captions: the text at the foot of each frame.
      columns: images of a row of each panel.
    """
    rows = math.ceil(x_t.shape[1] / columns)
    scale = max(1, round(PANEL / (columns * x_t.shape[3])))

    def panel(images: np.ndarray) -> Tile:
        return Tile(pictures.mosaic(images, rows, scale=scale, gap=2))

    return [
        _side_by_side(panel(noisy), panel(clean), caption)
        for noisy, clean, caption in zip(x_t, x0_hat, captions, strict=True)
    ]


def _side_by_side(x_t: Tile, x0_hat: Tile, caption: str) -> Image.Image:
    labels = ["xₜ", "x̂₀"]
    return lay_out([[x_t, x0_hat]], column_labels=labels, note=caption, gap=12)


# ---- points in the plane
def point_frames(
    x_t: np.ndarray,
    x0_hat: np.ndarray,
    captions: Sequence[str],
    zoom: Sequence[float],
    real: np.ndarray,
) -> list[Image.Image]:
    """Frames of sampling: points x_t on the left and x0-hat on the right, on the data's density.

    Args:
      x_t: (S, N, 2), in the order of sampling.
      x0_hat: (S, N, 2).
      captions: the text at the foot of each frame.
      zoom: (S,) by which x_t is divided to be seen, as `zoomed` returns it.
      real: (M, 2) points of the data.
    """
    box = box_of(real)
    under = pictures.density(real, box, side=PANEL)
    under = (255 - 0.35 * (255.0 - under)).astype(np.uint8)

    def panel(points: np.ndarray) -> Tile:
        return Tile(plane(points, box, under))

    return [
        _side_by_side(panel(noisy / by), panel(clean), caption)
        for noisy, clean, caption, by in zip(x_t, x0_hat, captions, zoom, strict=True)
    ]


def box_of(points: np.ndarray) -> Box:
    """The square in which points of the data and noise of unit variance are both seen.

    Args:
      points: (M, 2) points of the data.
    """
    low, high = np.quantile(points, 0.001, axis=0), np.quantile(points, 0.999, axis=0)
    center, half = (low + high) / 2, max(0.9 * float(max(high - low)), 0.5)
    return center - half, center + half


def zoomed(alpha: np.ndarray, sigma: np.ndarray, points: np.ndarray) -> np.ndarray:
    """By what x_t must be divided so that it stays in the box of the data; 1 where it does.

    Args:
      alpha: (S,) of the process at each time.
      sigma: (S,) likewise.
      points: (M, 2) points of the data.

    Returns:
      (S,), at least 1: for a variance-exploding process about sigma.
    """
    low, high = box_of(points)
    spread = np.sqrt(np.square(alpha) * np.var(points, axis=0).mean() + np.square(sigma))
    return np.maximum(1.0, 2 * spread / (0.5 * float(high[0] - low[0])))


def shaded(density: np.ndarray, side: int) -> np.ndarray:
    """A density on a grid as a tile, dark where it is high.

    Args:
      density: (n, n), not negative; the first axis is horizontal, from left to right, and the
        second vertical, from the bottom to the top.
      side: pixels of the tile.

    Returns:
      The tile, (side, side, 3) uint8, whose darkness is the square root of the density.
    """
    shade = np.sqrt(density / max(float(density.max()), 1e-30)).T[::-1]
    gray = Image.fromarray(shade.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    shade = np.clip(np.asarray(gray), 0.0, 1.0)[..., None]
    return (PAPER + shade * (0.75 * (np.asarray(SHADE, float) - PAPER))).round().astype(np.uint8)


def plane(
    points: np.ndarray,
    box: Box,
    background: np.ndarray,
    *,
    tails: np.ndarray | None = None,
    radius: float = 1.6,
) -> np.ndarray:
    """Points in the plane on a background, with the paths by which they came.

    Args:
      points: (N, 2).
      box: what is seen of the plane.
      background: the tile beneath, (side, side, 3) uint8.
      tails: (K, N, 2) earlier positions, oldest first; None or K = 0 for none.
      radius: of a point, in pixels.

    Returns:
      The tile, of the size of the background.
    """
    side = len(background)
    sheet = Image.fromarray(background).resize((side * FINER, side * FINER), Image.Resampling.BOX)
    draw, (low, high) = ImageDraw.Draw(sheet), np.asarray(box, float)

    def pixels(xy: np.ndarray) -> np.ndarray:
        unit = (np.asarray(xy, float) - low) / (high - low)
        return np.stack([unit[..., 0], 1 - unit[..., 1]], -1) * side * FINER

    here = pixels(points)
    if tails is not None and len(tails):
        paths = np.concatenate([pixels(tails), here[None]]).transpose(1, 0, 2)
        for path in paths[np.isfinite(paths).all((1, 2))]:
            draw.line([tuple(place) for place in path], fill=TAIL, width=FINER)
    reach = radius * FINER
    for x, y in here[np.isfinite(here).all(1)]:
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=POINT)
    return np.asarray(sheet.resize((side, side), Image.Resampling.BOX))
