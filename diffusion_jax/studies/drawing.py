"""How the samples of a subject are drawn on any grid, judged and forgotten, block by block.

run = runner(subject, sampler, length)
outcome = judged(subject, run, ts, folder=folder)
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import sampling
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.data.padding import padded_batches
from diffusion_jax.evaluation.estimators import Measurements
from diffusion_jax.evaluation.samples import Kept, Rows
from diffusion_jax.samplers import base, step_noise
from diffusion_jax.studies import blocks
from diffusion_jax.studies.subject import Subject
from diffusion_jax.training import distributed, sharding

SAMPLES, STARTS = blocks.FIRST + "samples", blocks.FIRST + "x0"

# (times (n,), positions or None for all, advance) -> (x0 (N, ...), evaluations (N,), seconds)
Runner = Callable[..., tuple[np.ndarray, np.ndarray, float]]


def runner(
    subject: Subject,
    sampler: base.Sampler,
    length: int,
    noise: Callable[..., Any] = step_noise.independent,
) -> Runner:
    """Make a function that draws samples of a subject on any grid, by one compiled program.

    Args:
      subject: what is sampled, on its mesh.
      sampler: the sampler.
      length: the number of times of the longest grid.
      noise: where the sampler's noise comes from, as in `base.sample`.

    Returns:
      (ts (n,) with n <= length, positions=None, advance=None) -> (x0 (N, ...), network evaluations
      (N,), seconds) of the samples at these positions, or of all. The program is compiled before
      the clock starts.
    """
    count, batch = len(subject.keys), subject.batch_size

    draw_batch = _program(subject, sampler, noise)

    def part(index: np.ndarray, real: int, ts: Array) -> tuple[np.ndarray, ...]:
        own = subject.keys[index], jax.tree.map(lambda c: c[index], subject.cond)
        out = draw_batch(subject.params, own, np.asarray(ts))
        return tuple(np.asarray(value)[:real] for value in out)

    @functools.cache
    def compile_once() -> None:
        # a grid of one time has no step
        start = sampling.pad(jnp.full(1, subject.process.t_min, subject.dtype), length)
        rows = next(padded_batches(count, batch))
        part(rows.index, rows.real, start)

    def draw(
        ts: np.ndarray,
        positions: np.ndarray | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        compile_once()
        positions = np.arange(count) if positions is None else positions
        ts, began = sampling.pad(jnp.asarray(ts, subject.dtype), length), time.monotonic()
        parts = []
        for rows in padded_batches(len(positions), batch):
            parts.append(part(positions[rows.index], rows.real, ts))
            if advance:
                advance(rows.real)
        x, spent = (np.concatenate(each) for each in zip(*parts))
        return x, spent, time.monotonic() - began

    return draw


def _program(
    subject: Subject, sampler: base.Sampler, noise: Callable[..., Any]
) -> Callable[..., tuple[Array, Array]]:
    """Make the function (params, (keys (B,), cond), times) -> (x0, evaluations of each sample)."""

    @jax.jit
    def run(params: Params, keys: Key, cond: Cond, ts: Array) -> tuple[Array, Array]:
        x = base.start(subject.process, keys, (len(keys), *subject.shape), subject.dtype)
        denoise = subject.denoise(params)
        samples = base.sample(
            sampler, denoise, subject.process, keys, x, ts, cond, padded=True, noise=noise
        )
        return samples.x0, samples.nfe

    if subject.mesh is not None:
        return sharding.spread(run, subject.mesh)
    return lambda params, examples, ts: run(params, *examples, ts)


class Outcome(NamedTuple):
    """What is known of the samples of a subject on one grid.

    Attributes:
      measured: their scores; {} where some are not finite.
      bad: how many are not finite.
      evaluations: network evaluations of each sample, (N,).
      seconds: the time that drawing took, without compilation.
      squares: the squared error of each seed with an exact solution, mean over dimensions.
      shown: the first samples, as they are judged; all of them, for points.
      x0: the solutions of the seeds with exact solutions, where these are requested.
    """

    measured: Measurements
    bad: int
    evaluations: np.ndarray
    seconds: float
    squares: np.ndarray
    shown: np.ndarray
    x0: np.ndarray


def judged(
    subject: Subject,
    run: Runner,
    ts: np.ndarray,
    *,
    exact: np.ndarray | None = None,
    folder: Path | None = None,
    grouped: bool = True,
    with_x0: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Outcome | None:
    """Draw all samples of a subject on a grid and judge them, in blocks that can be resumed.

    Args:
      subject: what is sampled and judged.
      run: what draws.
      ts: the times of the grid.
      exact: the exact solutions x0 of the first seeds; None for none.
      folder: where finished blocks are kept; None keeps their rows in memory.
      grouped: whether the scores need intervals.
      with_x0: whether the solutions of the seeds of `exact` are returned.
      advance: is called with the numbers of samples that are drawn.

    Returns:
      The outcome; None on all processes but the first.
    """
    solved = 0 if exact is None else len(exact)

    def make(positions: np.ndarray, _: Callable[[int], None]) -> Rows:
        x, spent, seconds = run(ts, positions, advance)
        if not distributed.first():
            return {}
        here = positions < solved
        rows = {
            "finite": np.isfinite(x).reshape(len(x), -1).all(1),
            "evaluations": spent,
            "seconds": np.full(len(x), seconds / len(x)),
            "squares": np.zeros(len(x)),
        }
        if here.any():
            apart = x[here].astype(np.float64) - exact[positions[here]]
            rows["squares"][here] = np.square(apart).reshape(here.sum(), -1).mean(1)
        rows |= {STARTS: x[here]} if with_x0 else {}
        return rows | (_extracted(subject, x, positions) if rows["finite"].all() else {})

    needed = ["finite", "evaluations", "seconds", "squares"]
    kept = blocks.run(folder, len(subject.keys), make, needed, at_once=subject.batch_size)
    return _outcome(subject, kept, solved, grouped, with_x0) if distributed.first() else None


def _extracted(subject: Subject, x: np.ndarray, positions: np.ndarray) -> Rows:
    """The rows that the judge needs of solutions x0, and the first samples."""
    samples, judging = subject.finish(x), subject.judging
    labels = () if judging.labels is None else judging.labels[positions]
    shown = len(subject.keys) if judging.shown is None else judging.shown
    first = samples[: max(shown - positions[0], 0)]
    return judging.judge.extract(samples, labels) | {SAMPLES: first}


def _outcome(subject: Subject, kept: Kept, solved: int, grouped: bool, with_x0: bool) -> Outcome:
    bad, none = int((~kept.whole("finite")).sum()), np.zeros((0, 0))
    return Outcome(
        measured={} if bad else subject.judging.judge.measure(kept, grouped=grouped),
        bad=bad,
        evaluations=kept.whole("evaluations"),
        seconds=float(kept.whole("seconds").sum()),
        squares=kept.read("squares", range(solved)) if solved else np.zeros(0),
        shown=none if bad else kept.first("samples"),
        x0=kept.first("x0") if with_x0 else none,
    )
