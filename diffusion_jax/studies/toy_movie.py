"""Points in the plane on their way from noise to data: the command toy_movie.

Processes stand in rows and samplers in columns. The denoiser of an analytic target is exact, so
nothing is trained, and what a panel shows is the sampler alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.assembly import components, outputs
from diffusion_jax.assembly.build import build, resolved
from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.core.types import Array, Key, Process
from diffusion_jax.evaluation import generate
from diffusion_jax.report import movies, pictures
from diffusion_jax.report.layout import Tile, lay_out
from diffusion_jax.samplers import base
from diffusion_jax.targets.presets import Target

CELLS = 72  # cells of the grid of the density, along a side
REAL = 4000  # draws of the target, from which the box is found
TRACED, STILL = 50, 16  # points whose paths are drawn in a frame, and whole in the still picture
COLORS = 48


class Panel(NamedTuple):
    """One process and one sampler.

    Attributes:
      process: the process.
      ts: (S,) its times from noise to data.
      states: (S + 1, N, 2), x at each time, and the samples.
    """

    process: Process
    ts: np.ndarray
    states: np.ndarray


class View(NamedTuple):
    """What is seen of the plane.

    Attributes:
      box: the lower and the upper corner.
      real: (M, 2) draws of the target.
      side: pixels of a panel.
      tail: number of steps whose path is drawn behind a point.
    """

    box: movies.Box
    real: np.ndarray
    side: int
    tail: int


def toy_movie(
    *,
    target: str = "gmm8",
    processes: str = "VP;VE;RectifiedFlow",
    samplers: str = "ddim;heun;ddpm",
    nfe: int = 32,
    num: int = 200,
    seed: int = 0,
    side: int = 150,
    tail: int = 4,
    fps: float = 10.0,
    out: str = "",
) -> None:
    """Animate the particles and the exact density under each process and sampler.

    Args:
      target: spec of an analytic target in the plane.
      processes: specs separated by ';', a row for each.
      samplers: specs separated by ';', a column for each, with @grid where one needs it.
      nfe: network evaluations per particle.
      num: number of particles of a panel.
      seed: of the first particle; the others have the seeds that follow.
      side: pixels of a panel.
      tail: number of steps whose path is drawn behind some of the particles.
      fps: frames in a second.
      out: the files to write, without the ending; '' takes runs/toy_movie_TARGET.

    Raises:
      UserError: for a target that is not in the plane, and for unknown names.
    """
    made = build(components.TARGETS, target)
    if tuple(made.shape) != (2,):
        raise UserError(
            f"--target={target}: examples have the shape {tuple(made.shape)}, and a movie shows "
            "points in the plane; take for example gmm8, checkerboard or two_moons"
        )
    rows, columns = _specs("processes", processes), _specs("samplers", samplers)
    name = resolved(components.TARGETS, target).partition("(")[0].rpartition(".")[2]
    files = outputs.named("out", out, ".gif", ".png", default=Path("runs") / f"toy_movie_{name}")
    keys = generate.seeds_to_keys(range(seed, seed + num))
    panels = {}
    with progress(len(rows) * len(columns), "sampling", unit="panels") as advance:
        for row in rows:
            for column in columns:
                panels[row, column] = _panel(made, row, column, nfe, keys)
                advance(1)
    real = np.asarray(made.draw(jax.random.key(0), REAL))
    view = View(movies.box_of(real), real, side, tail)
    frames, still = _draw(made, panels, rows, columns, view, nfe)
    movies.save_gif(frames, files[".gif"], fps=fps, first=0.8, colors=COLORS)
    pictures.save(still, files[".png"])
    print(f"{len(frames)} frames of {len(panels)} panels: {files['.gif']}, {files['.png']}")


def _specs(flag: str, text: str) -> list[str]:
    specs = list(dict.fromkeys(parsing.specs(text)))
    if not specs:
        raise UserError(f"--{flag}= names nothing; give at least one, with ';' between several")
    return specs


def _panel(target: Target, row: str, column: str, nfe: int, keys: Key) -> Panel:
    """The states of all particles under one process and sampler."""
    process = build(components.PROCESSES, row)
    spec, _, grid = column.partition("@")
    sampler = build(components.SAMPLERS, spec)
    count = base.points(sampler, nfe)
    if base.adaptive(sampler):
        print(f"note: the movie stops the adaptive {spec} {nfe} times", file=sys.stderr)
        count = nfe
    grid = base.grid_spec(grid or "auto", sampler)
    ts = jnp.asarray(build(components.GRIDS, grid, process, count), jnp.float32)

    @jax.jit
    def run(keys: Key, ts: Array) -> tuple[Array, Array, Array]:
        x = base.start(process, keys, (len(keys), 2))
        denoise = target.denoise(process)
        found = base.sample(sampler, denoise, process, keys, x, ts, observe=lambda x, t: x)
        return x[None], found.observed, found.x0[None]

    states = np.concatenate([np.asarray(part) for part in run(keys, ts)])
    return Panel(process, np.asarray(ts), states)


def _density(target: Target, process: Process, box: movies.Box) -> Callable[..., np.ndarray]:
    """The function (time, zoom) -> the exact density of x_t on the cells of the zoomed box."""
    ticks = [np.linspace(low, high, CELLS + 1)[:-1] for low, high in zip(*box)]
    half = (np.asarray(box[1]) - np.asarray(box[0])) / CELLS / 2
    cells = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 2) + half

    @jax.jit
    def log_density(t: Array, zoom: Array) -> Array:
        return target.log_density(process, jnp.asarray(cells, jnp.float32) * zoom, t)

    def density(t: float, zoom: float) -> np.ndarray:
        found = np.asarray(log_density(jnp.float32(t), jnp.float32(zoom)), np.float64)
        return np.exp(found - found.max()).reshape(CELLS, CELLS)

    return density


def _draw(
    target: Target,
    panels: dict[tuple[str, str], Panel],
    rows: Sequence[str],
    columns: Sequence[str],
    view: View,
    nfe: int,
) -> tuple[list[Image.Image], Image.Image]:
    """All frames, and the still picture: the samples with the whole paths of some of them.

    Every panel spends its evaluations at the same pace, so that one with fewer steps moves less
    often.
    """
    density = {row: _density(target, panels[row, columns[0]].process, view.box) for row in rows}
    count = max(len(panel.states) for panel in panels.values())

    def page(at: int, whole: bool = False) -> Image.Image:
        share = at / max(count - 1, 1)
        tiles = [
            [_tile(panels[row, column], density[row], share, view, whole) for column in columns]
            for row in rows
        ]
        look = {"row_labels": rows, "column_labels": columns, "gap": 8}
        return lay_out(tiles, note=f"NFE {round(share * nfe)} of {nfe}", **look)

    with progress(count, "drawing", unit="frames") as advance:
        frames = []
        for at in range(count):
            frames.append(page(at))
            advance(1)
    return frames, page(count - 1, whole=True)


def _tile(
    panel: Panel, density: Callable[..., np.ndarray], share: float, view: View, whole: bool
) -> Tile:
    """A panel after a share of its steps: the exact density of its time, and the particles."""
    last = len(panel.states) - 1
    i = int(share * last + 1e-6)
    t = panel.ts[min(i, last - 1)]
    zooms = _zooms(panel, view.real)
    under = movies.shaded(density(t, zooms[i]), view.side)
    states = panel.states / zooms[:, None, None]
    if whole:
        paths = states[:, :STILL]
        under = movies.plane(paths[-1], view.box, under, tails=paths[:-1])
        return Tile(movies.plane(states[-1], view.box, under))
    paths = states[max(i - view.tail, 0) : i + 1, :TRACED]
    under = movies.plane(paths[-1], view.box, under, tails=paths[:-1])
    return Tile(movies.plane(states[i], view.box, under))


def _zooms(panel: Panel, real: np.ndarray) -> np.ndarray:
    """By what the states are divided to be seen, (S + 1,): 1 but where the noise explodes."""
    ts = jnp.asarray(panel.ts)
    alpha, sigma = (np.asarray(c(ts)) for c in (panel.process.alpha, panel.process.sigma))
    return np.append(movies.zoomed(alpha, sigma, real), 1.0)
