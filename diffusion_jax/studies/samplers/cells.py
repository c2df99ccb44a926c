"""Samplers compared at equal budgets from the same seeds: the cells, and their results.

chosen = cells(["ancestral.ddim", "ode.heun@karras"], [5, 10], process, "uniform")
compared = compare(subject, chosen, folder)      finished cells are kept in the folder
lines = ranking.sentences(compared)              which sampler is best at each budget
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build
from diffusion_jax.core import npz, provenance, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.core.types import Process
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.estimators import Measurements
from diffusion_jax.evaluation.intervals import GROUPS
from diffusion_jax.samplers import base
from diffusion_jax.studies import blocks, drawing, store
from diffusion_jax.studies.subject import Subject
from diffusion_jax.training import distributed

FAILED = "a part of the comparison failed"
VERSION = 5  # of how cells are run and judged: cells of another version are not used
ADAPTIVE = 100  # network evaluations that the progress bar expects of an adaptive sampler


# ---- what is compared
class Cell(NamedTuple):
    """One sampler on one grid at one budget.

    Attributes:
      entry: the spec of the sampler, with @grid where it names one.
      sampler: the sampler.
      grid: the spec of the grid.
      nfe: the requested number of network evaluations; None for an adaptive sampler, whose
        tolerance decides.
      ts: the times of the grid.
    """

    entry: str
    sampler: base.Sampler
    grid: str
    nfe: int | None
    ts: np.ndarray


def full_name(entry: str) -> str:
    """Complete the name of the sampler in an entry: 'ddim@karras' -> 'ancestral.ddim@karras'.

    Args:
      entry: the spec of a sampler, which may have arguments, and optionally '@' and the spec of a
        grid. The grid stays as it is.
    """
    name, at, grid = entry.partition("@")
    return components.full_name("sampler.name", name) + at + grid


def cells(
    entries: Sequence[str],
    budgets: Sequence[int],
    process: Process,
    grid: str,
    *,
    place: Callable[[str, int], Any] | None = None,
) -> list[Cell]:
    """List every sampler at every budget, checked before anything runs.

    Args:
      entries: 'sampler', which uses `grid`, or 'sampler@grid'. The grid 'auto' is each sampler's
        own, by whose name the cell goes.
      budgets: numbers of network evaluations.
      process: the process of the grids.
      grid: the spec of the grid of entries that name none.
      place: (spec, n) -> the n times of a grid; None: one of the family of grids.

    Raises:
      UserError: for a sampler or a grid that does not exist, and for a budget below 1.
    """
    place = place or (lambda spec, n: build(components.GRIDS, spec, process, n))
    if not entries or not budgets or min(budgets) < 1:
        raise UserError(
            f"a comparison needs samplers, and budgets of at least 1; got '{';'.join(entries)}' "
            f"at {list(budgets)}"
        )
    found = []
    for entry in dict.fromkeys(map(full_name, entries)):
        name, _, own = entry.partition("@")
        sampler = build(components.SAMPLERS, name)
        if base.adaptive(sampler):
            ends = np.asarray([process.t_max, process.t_min])
            found.append(Cell(entry, sampler, "its own steps", None, ends))
            continue
        for nfe in budgets:
            spec = base.grid_spec(own or grid, sampler)
            ts = np.asarray(place(spec, base.points(sampler, nfe)))
            found.append(Cell(entry, sampler, spec, nfe, ts))
    return found


# ---- results
class Result(NamedTuple):
    """The result of a cell, or of the exact solutions.

    Attributes:
      row: what tables show.
      samples: the first, as they were judged, or all points; None where some were not finite, or
        where there are none.
      squares: the squared error of each seed, mean over dimensions.
      left_out: score -> its value without each group of samples (intervals.py), from which margins
        get their noise.
    """

    row: dict[str, Any]
    samples: np.ndarray | None = None
    squares: np.ndarray | None = None
    left_out: dict[str, np.ndarray] = {}


class Comparison(NamedTuple):
    """The results of a comparison.

    Attributes:
      results: one for each cell, in the order of the cells.
      exact: the exact solutions x0, with scores if there is one for every seed; 'what' in their row
        says how they were found, and samples is None where they could not be found.
      truth_scores: what as much real data scores.
      features: what the Fréchet distance of images compares; '' for points.
      truth_intervals: half the width of the 95 % interval of each score of real data.
    """

    results: list[Result]
    exact: Result
    truth_scores: Mapping[str, float] = {}
    features: str = ""
    truth_intervals: Mapping[str, float] = {}


def compare(
    subject: Subject,
    chosen: Sequence[Cell],
    folder: Path,
    *,
    noise: str = "independent",
    fresh: bool = False,
) -> Comparison:
    """Run and judge every cell.

    A sampler that fails, or whose samples are not finite, has a row whose 'note' gives the reason,
    and the others still run; an unexpected error is also logged with its traceback.

    Args:
      subject: what the samplers are compared on.
      chosen: the cells.
      folder: where finished cells are kept, and found by the next call.
      noise: where the samplers' noise comes from, a name of components.NOISES.
      fresh: run every cell again.
    """
    paths, exact_path = _paths(subject, chosen, folder, noise)
    read = functools.partial(_read, count=len(subject.keys))
    results = [store.load(path, read, fresh=fresh) for path in paths]
    missing = [i for i, result in enumerate(results) if result is None]
    if found := len(chosen) - len(missing):
        said = f"{found} of {len(chosen)} cells are taken from {folder}; --fresh runs them again"
        print(said, file=sys.stderr)
    old, _ = _paths(subject, chosen, folder, noise, version=VERSION - 1)
    if earlier := sum(old[i].exists() for i in missing):
        said = f"{earlier} cells in {folder} are of an earlier version and are run again"
        print(said, file=sys.stderr)
    exact = _exact_solution(subject, exact_path, fresh)
    origin, cost = _origin(subject), [len(subject.keys) * (c.nfe or ADAPTIVE) for c in chosen]
    with progress(sum(cost[i] for i in missing), "comparing", unit="evaluations") as advance:
        for entry in dict.fromkeys(chosen[i].entry for i in missing):
            own = [i for i in missing if chosen[i].entry == entry]
            length = max(len(cell.ts) for cell in chosen if cell.entry == entry)
            source = components.NOISES[noise]
            run = drawing.runner(subject, chosen[own[0]].sampler, length, source)
            for i in own:
                done = functools.partial(_advance, advance, cost[i] // len(subject.keys))
                results[i] = _finish_cell(subject, chosen[i], paths[i], origin, run, exact, done)
    judging = subject.judging
    truth = judging.truth
    return Comparison(
        _with_orders(results),
        exact,
        intervals.values(truth),
        judging.features,
        intervals.halves(truth),
    )


def _paths(
    subject: Subject, chosen: Sequence[Cell], folder: Path, noise: str, version: int = VERSION
) -> tuple[list[Path], Path]:
    """The file of every cell, and that of the exact solutions."""

    def path(**rest: Any) -> Path:
        identity = {"version": version, "subject": subject.identity, **rest}
        return store.cell_path(folder, identity)

    paths = [
        path(sampler=cell.entry, grid=cell.grid, nfe=cell.nfe, ts=cell.ts, noise=noise)
        for cell in chosen
    ]
    return paths, path(exact=True)


def _advance(advance: Callable[[int], None], each: int, samples: int) -> None:
    advance(each * samples)


def _finish_cell(
    subject: Subject,
    cell: Cell,
    path: Path,
    origin: dict[str, Any],
    run: drawing.Runner,
    exact: Result,
    done: Callable[[int], None],
) -> Result:
    """Run a cell, judge it and keep its result; the result of one that fails is a note alone."""
    about = {"sampler": cell.entry, "grid": cell.grid, "nfe": cell.nfe} | origin
    try:
        about["stochastic"] = base.draws_noise(cell.sampler, subject.process)
        solution = None if about["stochastic"] else exact.samples
        result = _judged(subject, cell, about, run, solution, path.with_suffix(""), done)
        if distributed.first():
            _save(path, result)
            blocks.discard(path.with_suffix(""))
        return result
    except UserError as error:
        return Result(about | {"note": str(error)})
    except Exception as error:  # the other samplers are still worth comparing
        logging.error(FAILED, exc_info=error)
        return Result(about | {"note": _in_one_line(error)})


def _judged(
    subject: Subject,
    cell: Cell,
    about: dict[str, Any],
    run: drawing.Runner,
    exact: np.ndarray | None,
    folder: Path,
    done: Callable[[int], None],
) -> Result:
    """Run a cell and judge its samples; exact: x0 of the first seeds, or None."""
    if cell.nfe is not None and len(cell.ts) < 2 and cell.nfe > 1:
        # (with one evaluation the sample is x0-hat of the noise)
        step = cell.sampler.nfe + sum(cell.sampler.warmup[:1])
        note = f"no step fits: one takes {step} evaluations, and x0-hat one"
        return Result(about | {"note": note})
    found = drawing.judged(subject, run, cell.ts, exact=exact, folder=folder, advance=done)
    if found is None:  # on the other processes
        return Result(about)
    count, spent = len(subject.keys), found.evaluations
    made = int(spent[0]) if cell.nfe else round(float(spent.mean()), 1)
    row = about | {"evaluations": made, "seconds_per_image": found.seconds / count}
    if found.bad:
        return Result(row | {"note": f"{found.bad} of {count} samples are not finite"})
    row, left_out = _scored(row, found.measured)
    if exact is None:
        return Result(row, found.shown, None, left_out)
    error = float(np.sqrt(found.squares.mean()))
    if len(found.squares) > 1 and error:
        noise = found.squares.std(ddof=1) / np.sqrt(len(found.squares))
        row["intervals"]["error"] = float(intervals.NORMAL * noise / (2 * error))
    return Result(row | {"error": error}, found.shown, found.squares, left_out)


def _scored(
    row: dict[str, Any], measured: Measurements
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The row with the scores and their intervals; and the scores without each group."""
    groups = {name: score.left_out for name, score in measured.items() if len(score.left_out)}
    return row | intervals.record(measured), groups


def _exact_solution(subject: Subject, path: Path, fresh: bool) -> Result:
    """The exact solutions, kept like a cell."""
    kept = store.load(path, _read, fresh=fresh)
    if kept is not None:
        return kept
    print("solving for the exact trajectories ...", file=sys.stderr)
    try:
        x0, what = subject.exact()
    except UserError as error:
        return Result({"what": f"not known ({error})"})
    except Exception as error:  # the distributions can still be compared
        logging.error(FAILED, exc_info=error)
        return Result({"what": f"not known ({_in_one_line(error)})"})
    row, left_out = {"what": what}, {}
    if len(x0) == len(subject.keys):
        row, left_out = _scored(row, subject.measured(subject.finish(x0)))
    result = Result(row, x0, None, left_out)
    if distributed.first():
        _save(path, result)
    return result


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _origin(subject: Subject) -> dict[str, Any]:
    """The origin of a row's numbers: commit, config, date, checkpoint and seeds."""
    stamp, seeds = provenance.provenance(subject.identity), subject.identity["seeds"]
    whole = seeds == list(range(seeds[0], seeds[-1] + 1))
    model = {key: subject.identity[key] for key in ("step", "weights") if key in subject.identity}
    seeds = f"{seeds[0]}-{seeds[-1]}" if whole else ",".join(map(str, seeds))
    return {key: stamp[key] for key in ("commit", "config_hash", "date")} | model | {"seeds": seeds}


def _with_orders(results: Sequence[Result]) -> list[Result]:
    """The results with the observed order of convergence in their rows.

    order = log(error ratio) / log(step ratio), from the budget before to this one.
    """
    before, found = {}, []
    for result in results:
        row, last = result.row, before.get(result.row["sampler"])
        if row.get("nfe") and row.get("error"):
            before[row["sampler"]] = row
            if last and last["evaluations"] > 1:
                steps = (row["evaluations"] - 1) / (last["evaluations"] - 1)
                row = row | {"order": float(np.log(last["error"] / row["error"]) / np.log(steps))}
        found.append(result._replace(row=row))
    return found


# ---- what is kept
_WORDS = dict.fromkeys(("sampler", "grid", "what", "note"), reading.text(1)) | dict.fromkeys(
    ("commit", "config_hash", "date", "weights", "seeds"), reading.optional(reading.text())
)
_KINDS = _WORDS | {
    "nfe": reading.optional(reading.integer(1)),
    "stochastic": reading.boolean(),
    "intervals": reading.table(reading.number(0)),
}
_ARRAYS = {"samples": npz.ArraySpec("fu"), "squares": npz.ArraySpec("f", (None,))}
_LEFT_OUT = "left_out."  # the beginning of the names of the arrays of Result.left_out


def _row(value: Any, place: str) -> None:
    """The rule for the row of a cell or of the exact solutions: words, and scores as numbers."""
    reading.record({}, _KINDS, others=reading.number(finite=False))(value, place)
    cell = {"sampler", "grid", "nfe"} <= value.keys() and (value.keys() & {"note", "evaluations"})
    if not (cell or "what" in value):
        raise reading.Mismatch(
            f"{place or 'it'} is neither a row of a cell nor one of exact solutions"
        )


def _save(path: Path, result: Result) -> None:
    left_out = {f"{_LEFT_OUT}{name}": value for name, value in result.left_out.items()}
    arrays = {"samples": result.samples, "squares": result.squares, **left_out}
    store.save_cell(path, "row", result.row, arrays)


def _read(path: Path, count: int | None = None) -> Result:
    """The result that `_save` wrote.

    Raises:
      UserError: for a file that is damaged, or has more samples than `count` (None: any number).
    """

    def also(name: str) -> npz.ArraySpec | None:
        left_out = npz.ArraySpec("f", (GROUPS,), finite=False)
        return _ARRAYS.get(name, left_out if name.startswith(_LEFT_OUT) else None)

    row, arrays = store.read_cell(path, "row", _row, {}, also)
    samples, squares = arrays.pop("samples", None), arrays.pop("squares", None)
    if samples is not None and (samples.ndim < 2 or len(samples) > (count or len(samples))):
        raise UserError(f"'{path}' is damaged: its samples are {list(samples.shape)}")
    left_out = {name.removeprefix(_LEFT_OUT): value for name, value in arrays.items()}
    return Result(row, samples, squares, left_out)
