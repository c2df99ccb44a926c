"""Samplers side by side: what is compared, on what, the work itself, and who is best. A room of the
roof, for experiments.

cells(entries, budgets, process, grid)        sampler x grid x budget, checked before anything runs
of_target(...), of_model(...) -> Subject      an exact law, or a trained model, and how its samples are judged
compare(subject, cells, folder) -> Comparison every cell run and judged; finished ones are kept, and found again next time
ranking, sentences                            who is best at a budget, by how much, and whether that is more than noise
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffusion_jax import data, files, npz, provenance, reading
from diffusion_jax.assembly import components, conditions, denoiser, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate, judge, points
from diffusion_jax.progress import progress
from diffusion_jax.report import pictures
from diffusion_jax.samplers import base, grids
from diffusion_jax.targets import reference
from diffusion_jax.types import Cond, Denoise, Key, Params, Process

VERSION = 4  # of how cells are run and judged: another one does not take those that were kept
GROUPS = 5  # of samples, left out in turn to tell a margin from noise
SHOWN = 8  # images of a strip
ADAPTIVE = 100  # evaluations that the progress bar expects of an adaptive sampler
FINE = 401  # evaluations of the fine solve of a model's own ODE
QUALITY = ("frechet", "sliced_wasserstein")  # the score that decides, whichever of them there is

NAMES = {
    "accuracy": "recognized",
    "frechet": "Fréchet distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "mmd": "MMD",
    "mode_weights": "mode error",
    "error": "trajectory error",
    "order": "order",
}


# ---- what is compared
class Cell(NamedTuple):
    """One sampler on one grid at one budget. nfe: what was asked for; None for an adaptive sampler,
    whose tolerance decides.
    """

    entry: str
    sampler: base.Sampler
    grid: str
    nfe: int | None
    ts: np.ndarray


def full_name(entry: str) -> str:
    """An entry of `cells` with the full name of its sampler: 'ddim@karras' ->
    'ancestral.ddim@karras'.
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
    """Every entry 'sampler' (on `grid`) or 'sampler@its_grid' at every budget. UserError for what
    does not exist.

    'auto' is each sampler's own grid, by which the cell then goes.

    place(spec, n) -> the n times of a grid; None: one of the family.
    """
    place = place or (lambda spec, n: build(components.GRIDS, spec, process, n))
    if not entries or not budgets or min(budgets) < 1:
        raise UserError(
            f"a comparison needs samplers, and budgets of at least 1; got '{';'.join(entries)}' at {list(budgets)}"
        )
    found = []
    for entry in dict.fromkeys(map(full_name, entries)):
        name, _, own = entry.partition("@")
        sampler = build(components.SAMPLERS, name)
        if base.adaptive(sampler):
            found.append(
                Cell(
                    entry,
                    sampler,
                    "its own steps",
                    None,
                    np.asarray([process.t_max, process.t_min]),
                )
            )
            continue
        for nfe in budgets:
            spec = grids.spec(own or grid, sampler)
            found.append(
                Cell(entry, sampler, spec, nfe, np.asarray(place(spec, base.points(sampler, nfe))))
            )
    return found


# ---- what it is compared on
class Subject(NamedTuple):
    """A trained model or an exact target, and how its samples are judged.

    identity: all that its numbers depend on besides sampler, grid and budget; 'seeds' among it.
      denoise(params) -> Denoise.
    keys (N,): the same seeds for every sampler. finish(x) -> samples as they are judged and kept.
    judge(samples, group) -> scores, without the samples of that group (None: of all). floor: what
    truth itself scores. exact() -> the solutions x0 from the first seeds, or from all, and in words
    what they are. picture(samples) -> a tile of a strip. real: samples of the truth.
    features: what the Fréchet distance of images compares, a name of evaluation.features; '' for
      points.
    """

    name: str
    identity: dict[str, Any]
    process: Process
    shape: tuple[int, ...]
    dtype: str
    denoise: Callable[[Params], Denoise]
    params: Params
    cond: Cond
    keys: Key
    batch_size: int
    finish: Callable[[np.ndarray], np.ndarray]
    judge: Callable[[np.ndarray, int | None], dict[str, float]]
    floor: dict[str, float]
    exact: Callable[[], tuple[np.ndarray, str]]
    picture: Callable[[np.ndarray], np.ndarray]
    real: np.ndarray
    features: str = ""


def of_target(spec: str, process: str, seeds: Sequence[int]) -> Subject:
    """An exact law, in float64 (call and use under jax.enable_x64): samples are judged against four
    times as many draws.
    """
    target, path = build(components.TARGETS, spec), build(components.PROCESSES, process)
    count, keys = len(seeds), generate.seeds_to_keys(seeds)
    draws = np.asarray(target.draw(jax.random.key(2**31), 12 * count)).reshape(12, count, -1)
    truth, others = draws[:4].reshape(4 * count, -1), draws[4:]

    def score(x: np.ndarray, group: int | None = None) -> dict[str, float]:
        if group is not None:  # for the margin of the score that decides
            return {"sliced_wasserstein": points.sliced_wasserstein(x[_kept(count, group)], truth)}
        scores = _points_against(truth, x)
        if target.modes is None:
            return scores
        off = points.mode_weights(x, target.modes.means) - np.asarray(target.modes.weights)
        return scores | {"mode_weights": 0.5 * float(np.abs(off).sum())}

    def exact() -> tuple[np.ndarray, str]:
        denoise, x = target.denoise(path), base.start(path, keys, (count, *target.shape), "float64")
        x = reference.reference(denoise, path, x, path.t_max, path.t_min)
        x0 = denoise(jnp.asarray(x), jnp.float64(path.t_min)).x0
        return np.asarray(x0), "an adaptive float64 solve to a tolerance of 1e-10"

    floors, margin = [score(other) for other in others], 0.08 * np.ptp(truth, axis=0)
    return Subject(
        name=f"{spec}, {process}",
        identity={"target": spec, "process": process, "seeds": list(seeds)},
        process=path,
        shape=target.shape,
        dtype="float64",
        denoise=lambda params: target.denoise(path),
        params=(),
        cond=None,
        keys=keys,
        batch_size=count,
        finish=lambda x: x.astype(np.float32),
        judge=score,
        exact=exact,
        floor={name: float(np.mean([scores[name] for scores in floors])) for name in floors[0]},
        real=others[0],
        picture=functools.partial(
            pictures.density, box=(truth.min(0) - margin, truth.max(0) + margin)
        ),
    )


def of_model(
    trained: Trained,
    dataset: data.Dataset,
    seeds: Sequence[int],
    name: str,
    *,
    solved: int = 64,
    features: str = "",
) -> Subject:
    """A trained model with its config's guidance, clip and weights, and the conditions of
    `experiment.conditions`.

    Images are judged by evaluation.judge (and real test images beside them), points against as many
    held-out ones. features: of the Fréchet distance; '': the default ones (judge.default_features).

    Raises:
      UserError: for an autoencoder, for guidance that the model has no condition for, and for
        captions that are not there.
    """
    built, config = trained.experiment, trained.experiment.config
    denoiser.need_denoiser(built)
    count, images, scale = len(seeds), built.is_image, config.sampler.guidance
    guided = denoiser.is_guided(built, scale)
    (labels, cond), keys = (
        conditions.conditions(built, dataset, count),
        generate.seeds_to_keys(seeds),
    )
    held_out = data.arrays(dataset.test if len(dataset.test) else dataset.train, limit=count)
    real = held_out["image"]

    def denoise(params: denoiser.Ensemble) -> Denoise:
        return denoiser.denoiser(
            *denoiser.unpack(built, params),
            scale=jnp.float32(scale) if guided else None,
            clip=config.sampler.clip,
        )

    if images:
        labelled, features = labels is not None, features or judge.default_features(dataset.train)
        judged = _plainly(
            judge.against(
                dataset.train,
                labels,
                features=(features,),
                count=count,
                metrics=("accuracy", "frechet") if labelled else ("frechet",),
            ),
            features,
        )
        floor = judge.on_real(dataset.train, dataset.test, judged, count)
    else:
        judged = functools.partial(_points_against, real)
        labelled, features, floor = (
            False,
            "",
            judged(data.arrays(dataset.train, limit=count)["image"]),
        )

    def score(x: np.ndarray, group: int | None = None) -> dict[str, float]:
        kept = _kept(count, group)
        return judged(x[kept], labels[kept]) if labelled else judged(x[kept])

    box = (
        None
        if images
        else (np.quantile(real, 0.001, axis=0) - 0.2, np.quantile(real, 0.999, axis=0) + 0.2)
    )
    identity = {
        "config": config.to_dict(),
        "step": trained.step,
        "weights": trained.weights,
        "seeds": list(seeds),
        "features": features,
    }
    subject = Subject(
        name=name,
        identity=identity,
        process=built.process,
        shape=built.shape,
        dtype="float32",
        denoise=denoise,
        params=denoiser.ensemble(built, trained.params),
        cond=cond,
        keys=keys,
        batch_size=min(config.sampler.batch_size, count),
        finish=sampling.to_images(built, config.sampler.batch_size),
        judge=score,
        floor=floor,
        exact=lambda: ((), ""),
        picture=(lambda x: pictures.mosaic(x[:SHOWN]))
        if images
        else functools.partial(pictures.density, box=box),
        real=real,
        features=features,
    )
    if not built.kind.has_flow:
        return subject._replace(exact=_no_path)
    few = min(solved, count)
    some = subject._replace(
        keys=keys[:few], batch_size=few, cond=jax.tree.map(lambda c: c[:few], cond)
    )
    return subject._replace(exact=lambda: _fine_solution(some))


def _plainly(judged: judge.Judge, features: str) -> judge.Judge:
    """The judge, whose Fréchet distance is named 'frechet' whatever features it compares."""
    return lambda *args: {
        name.removesuffix(f"/{features}"): value for name, value in judged(*args).items()
    }


def _points_against(real: np.ndarray, x: np.ndarray) -> dict[str, float]:
    return {"sliced_wasserstein": points.sliced_wasserstein(x, real), "mmd": points.mmd(x, real)}


def _no_path() -> tuple[np.ndarray, str]:
    raise UserError("the network jumps, and follows no path that could be solved for")


def _fine_solution(subject: Subject) -> tuple[np.ndarray, str]:
    """x0 of the subject's probability-flow ODE by EDM's Heun in many steps, and how far half as
    many steps are from it.
    """
    sampler = build(components.SAMPLERS, "ode.edm_heun")
    solve = runner(subject, sampler, FINE // 2 + 1)
    lengths = (base.points(sampler, nfe) for nfe in (FINE, FINE // 2 + 1))
    best, half = (solve(np.asarray(grids.uniform_logsnr(subject.process, n)))[0] for n in lengths)
    moved = float(np.sqrt(np.mean(np.square(best - half, dtype=np.float64))))
    return (
        best,
        f"ode.edm_heun@uniform_logsnr at {FINE} NFE, which halving its steps moves by {moved:.1e}",
    )


def _kept(count: int, group: int | None) -> np.ndarray:
    """Which of `count` samples stay when a group is left out."""
    return np.arange(count) % GROUPS != (-1 if group is None else group)


# ---- the work
class Result(NamedTuple):
    """row: what is told. samples: as judged; None where some were not finite, or there are none.
    squares: squared errors by seed. left_out: a score without each of GROUPS groups of samples,
    from which margins get their noise.
    """

    row: dict[str, Any]
    samples: np.ndarray | None = None
    squares: np.ndarray | None = None
    left_out: dict[str, np.ndarray] = {}


class Comparison(NamedTuple):
    """results: one for each cell, in their order. exact: the solutions x0, judged if they are there
    for every seed; their row says 'what' they are; samples None if they could not be had. floor:
    what as many samples of the truth itself score. names: what the scores are called.
    """

    results: list[Result]
    exact: Result
    floor: Mapping[str, float] = {}
    names: Mapping[str, str] = NAMES


def compare(
    subject: Subject,
    chosen: Sequence[Cell],
    kept: Path,
    *,
    noise: str = "independent",
    fresh: bool = False,
) -> Comparison:
    """Run and judge every cell. Finished ones are taken from, and put into, the folder `kept`;
    `fresh`: made anew.

    A sampler that fails, or whose samples are not finite, has a row whose 'note' gives the reason,
    and the others go on; an unexpected error is also logged with its traceback. noise: a name of
    experiment.NOISES.
    """

    def path(**what) -> Path:
        digest = provenance.config_hash({"version": VERSION, "subject": subject.identity, **what})
        return kept / f"{digest[:20]}.npz"

    paths = [
        path(sampler=cell.entry, grid=cell.grid, nfe=cell.nfe, ts=cell.ts, noise=noise)
        for cell in chosen
    ]
    results = [
        None if fresh else reading.kept(p, functools.partial(_recall, count=len(subject.keys)))
        for p in paths
    ]
    left = [i for i, result in enumerate(results) if result is None]
    if found := len(chosen) - len(left):
        print(
            f"{found} of {len(chosen)} cells are taken from {kept}; --fresh makes them anew",
            file=sys.stderr,
        )
    exact = _solution(subject, path(exact=True), fresh)
    origin, cost = _origin(subject), [len(subject.keys) * (cell.nfe or ADAPTIVE) for cell in chosen]
    with progress(sum(cost[i] for i in left), "comparing", unit="evaluations") as advance:
        for entry in dict.fromkeys(chosen[i].entry for i in left):
            own = [i for i in left if chosen[i].entry == entry]
            sampler, length = (
                chosen[own[0]].sampler,
                max(len(cell.ts) for cell in chosen if cell.entry == entry),
            )
            run = runner(subject, sampler, length, components.NOISES[noise])
            for i in own:
                about = {"sampler": entry, "grid": chosen[i].grid, "nfe": chosen[i].nfe} | origin
                try:
                    about["stochastic"] = base.draws_noise(sampler, subject.process)
                    results[i] = _judged(
                        subject,
                        chosen[i],
                        about,
                        run,
                        None if about["stochastic"] else exact.samples,
                    )
                    _keep(paths[i], results[i])
                except (
                    Exception
                ) as error:  # whatever one sampler does wrong, the others are still worth comparing
                    results[i] = Result(about | {"note": _reason(error)})
                advance(cost[i])
    return Comparison(_with_orders(results), exact, subject.floor, names(subject.features))


def names(features: str) -> dict[str, str]:
    """What the scores are called where images are compared by these features: with Inception's the
    Fréchet distance is FID.
    """
    return NAMES | ({"frechet": "FID"} if features == "inception" else {})


def _with_orders(results: list[Result]) -> list[Result]:
    """'order' in the rows: how fast the trajectory error falls from the budget before, log(error
    ratio) / log(step ratio).
    """
    before, told = {}, []
    for result in results:
        row, last = result.row, before.get(result.row["sampler"])
        if row.get("nfe") and row.get("error"):
            before[row["sampler"]] = row
            if last and last["evaluations"] > 1:
                steps = (row["evaluations"] - 1) / (last["evaluations"] - 1)
                row = row | {"order": float(np.log(last["error"] / row["error"]) / np.log(steps))}
        told.append(result._replace(row=row))
    return told


def runner(
    subject: Subject, sampler: base.Sampler, length: int, noise=base.independent
) -> Callable:
    """ts -> (samples (N, ...), evaluations (N,), seconds): one program for all grids up to `length`
    times, compiled untimed.
    """
    count, batch = len(subject.keys), subject.batch_size

    @jax.jit
    def run(params, keys, cond, ts):
        x, denoise = (
            base.start(subject.process, keys, (batch, *subject.shape), subject.dtype),
            subject.denoise(params),
        )
        samples = base.sample(
            sampler,
            denoise,
            subject.process,
            keys,
            x,
            ts,
            cond,
            padded=True,
            noise=noise,
        )
        return samples.x0, samples.nfe

    def part(start: int, ts) -> tuple[np.ndarray, ...]:
        index = np.minimum(
            np.arange(start, start + batch), count - 1
        )  # the last batch is filled up with the last sample
        out = run(
            subject.params, subject.keys[index], jax.tree.map(lambda c: c[index], subject.cond), ts
        )
        return tuple(np.asarray(value)[: count - start] for value in out)

    @functools.cache
    def compile_once() -> None:
        part(
            0, sampling.pad(jnp.full(1, subject.process.t_min, subject.dtype), length)
        )  # a grid of one time makes no move

    def over(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        compile_once()
        ts, began = sampling.pad(jnp.asarray(ts, subject.dtype), length), time.monotonic()
        x, spent = (
            np.concatenate(parts)
            for parts in zip(*(part(start, ts) for start in range(0, count, batch)))
        )
        return x, spent, time.monotonic() - began

    return over


def _reason(error: Exception) -> str:
    """An error in one line. The traceback of one that is not a user's mistake is logged."""
    if isinstance(error, UserError):
        return str(error)
    logging.error("a part of the comparison failed", exc_info=error)
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _judged(
    subject: Subject, cell: Cell, about: dict, run: Callable, exact: np.ndarray | None
) -> Result:
    """The Result of a cell: run it and take its measure."""
    if (
        cell.nfe is not None and len(cell.ts) < 2 and cell.nfe > 1
    ):  # (one evaluation is x0-hat from noise)
        step = cell.sampler.nfe + sum(cell.sampler.warmup[:1])
        return Result(
            about | {"note": f"no step fits: one takes {step} evaluations, and x0-hat one"}
        )
    x, spent, seconds = run(cell.ts)
    made = int(spent[0]) if cell.nfe else round(float(spent.mean()), 1)
    row = about | {"evaluations": made, "seconds_per_image": seconds / len(x)}
    bad = (~np.isfinite(x)).reshape(len(x), -1).any(1).sum()
    if bad:
        return Result(row | {"note": f"{bad} of {len(x)} samples are not finite"})
    scores, left_out = _scored(subject, samples := subject.finish(x))
    if exact is None:
        return Result(row | scores, samples, None, left_out)
    squares = np.square(x[: len(exact)].astype(np.float64) - exact).reshape(len(exact), -1).mean(1)
    return Result(
        row | scores | {"error": float(np.sqrt(squares.mean()))}, samples, squares, left_out
    )


def _scored(
    subject: Subject, samples: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The scores of samples, and those without each group."""
    parts = (
        [subject.judge(samples, group) for group in range(GROUPS)]
        if len(samples) >= 2 * GROUPS
        else [{}]
    )
    return subject.judge(samples, None), {
        name: np.asarray([scores[name] for scores in parts]) for name in parts[0]
    }


def _solution(subject: Subject, path: Path, fresh: bool) -> Result:
    """The exact solutions, kept like a cell."""
    kept = None if fresh else reading.kept(path, _recall)
    if kept is None:
        print("solving for the exact trajectories ...", file=sys.stderr)
        try:
            x0, what = subject.exact()
        except Exception as error:  # the distributions can still be compared
            return Result({"what": f"not known ({_reason(error)})"})
        scores, left_out = (
            _scored(subject, subject.finish(x0)) if len(x0) == len(subject.keys) else ({}, {})
        )
        _keep(path, kept := Result({"what": what} | scores, x0, None, left_out))
    return kept


def _origin(subject: Subject) -> dict[str, Any]:
    """What every row says of where it comes from."""
    stamp, seeds = provenance.provenance(subject.identity), subject.identity["seeds"]
    whole = seeds == list(range(seeds[0], seeds[-1] + 1))
    model = {key: subject.identity[key] for key in ("step", "weights") if key in subject.identity}
    seeds = f"{seeds[0]}-{seeds[-1]}" if whole else ",".join(map(str, seeds))
    return {key: stamp[key] for key in ("commit", "config_hash", "date")} | model | {"seeds": seeds}


def _keep(path: Path, result: Result) -> None:
    arrays = {"samples": result.samples, "squares": result.squares} | {
        f"left_out.{k}": v for k, v in result.left_out.items()
    }
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        arrays = {name: value for name, value in arrays.items() if value is not None}
        np.savez_compressed(file, row=files.canonical_json(result.row, None), **arrays)


_WORDS = dict.fromkeys(("sampler", "grid", "what", "note"), reading.text(1)) | dict.fromkeys(
    ("commit", "config_hash", "date", "weights", "seeds"), reading.optional(reading.text())
)

_KINDS = _WORDS | {"nfe": reading.optional(reading.integer(1)), "stochastic": reading.boolean()}


def _row(value: Any, place: str) -> None:
    """The rule of the row of a cell, or of the exact solutions: words, and scores that are numbers."""
    reading.record({}, _KINDS, others=reading.number(finite=False))(value, place)
    cell = {"sampler", "grid", "nfe"} <= value.keys() and (value.keys() & {"note", "evaluations"})
    if not (cell or "what" in value):
        raise reading.Mismatch(
            f"{place or 'it'} is neither a row of a cell nor one of exact solutions"
        )


def _recall(path: Path, count: int | None = None) -> Result:
    """The cell, or the exact solutions, that `_keep` wrote. UserError for a file that is damaged,
    or not of `count` samples.
    """
    arrays = {
        "row": npz.ArraySpec("U", ()),
        "samples": npz.ArraySpec("fu"),
        "squares": npz.ArraySpec("f", (None,)),
    }
    found = npz.load(
        path,
        {"row": arrays["row"]},
        lambda name: arrays.get(
            name,
            npz.ArraySpec("f", (GROUPS,), finite=False) if name.startswith("left_out.") else None,
        ),
    )
    row = reading.json_text(str(found["row"]), f"the row in '{path}'", _row)
    samples = found.get("samples")
    if samples is not None and (samples.ndim < 2 or len(samples) != (count or len(samples))):
        raise UserError(f"'{path}' is damaged: its samples are {list(samples.shape)}")
    left_out = {
        name.removeprefix("left_out."): value
        for name, value in found.items()
        if name.startswith("left_out.")
    }
    return Result(row, samples, found.get("squares"), left_out)


# ---- the verdict
def margin(best: Result, other: Result, metric: str) -> tuple[float, float]:
    """(how much the other is worse, the standard error of that): paired, because all share their
    seeds.

    For 'error' the mean of the squared errors' differences; else a jackknife over groups of
    samples, 0 where it is not known.
    """
    if metric == "error":
        gap = other.squares - best.squares
        return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(
            gap
        ) > 1 else 0.0
    sign = -1 if metric == "accuracy" else 1
    worse = sign * (other.row[metric] - best.row[metric])
    if metric not in best.left_out or metric not in other.left_out:
        return worse, 0.0
    gaps = other.left_out[metric] - best.left_out[metric]
    return worse, float(np.sqrt((GROUPS - 1) / GROUPS * np.square(gaps - gaps.mean()).sum()))


class Ranking(NamedTuple):
    """Those that kept to a budget, best first. tied: how many of them have no order but noise.
    perfect: whether these cannot be told from the exact solution either. beyond: how many score no
    worse than samples of the truth itself do.
    """

    there: list[Result]
    tied: int
    perfect: bool
    beyond: int = 0


def ranking(compared: Comparison, nfe: int, metric: str) -> Ranking:
    """Two standard errors count as noise, and so does being better than the exact solution or than
    the truth itself.
    """

    def within(row: dict) -> bool:
        return metric in row and (
            row["nfe"] == nfe or (row["nfe"] is None and row["evaluations"] <= nfe)
        )

    sign = -1 if metric == "accuracy" else 1
    there = sorted(
        (r for r in compared.results if within(r.row)), key=lambda r: sign * r.row[metric]
    )

    def told_from(best: Result, r: Result) -> bool:
        worse, noise = margin(best, r, metric)
        return worse > 2 * noise

    perfect = (
        there != [] and metric in compared.exact.row and not told_from(compared.exact, there[0])
    )
    best = compared.exact if perfect else there[0] if there else None
    tied = next((i for i, r in enumerate(there) if i and told_from(best, r)), len(there))
    floor = compared.floor.get(metric)
    beyond = 0 if floor is None else sum(sign * r.row[metric] <= sign * floor for r in there)
    return Ranking(there, max(tied, beyond), perfect and beyond <= tied, beyond)


def failures(compared: Comparison) -> list[str]:
    """A sentence with the reason for every cell that has no result."""
    rows = [result.row for result in compared.results if _failed(result.row)]

    def at(row):
        return "" if row["nfe"] is None else f" at {row['nfe']} NFE"

    return [
        f"{row['sampler']}{at(row)} has no result: {row.get('note', 'no score')}" for row in rows
    ]


def need_results(rows: Sequence[dict[str, Any]]) -> None:
    """UserError with the first reason, if every cell of a table has failed."""
    if rows and all(map(_failed, rows)):
        raise UserError(
            f"no cell has a result; the first failed because: {rows[0].get('note', 'no score')}"
        )


def _failed(row: dict[str, Any]) -> bool:
    return not any(key in row for key in NAMES)


def sentences(compared: Comparison) -> list[str]:
    """One for each budget: who is best by distribution, who is nearest to the exact solution, and
    by how much.
    """
    quality = next(
        (metric for metric in QUALITY if any(metric in r.row for r in compared.results)), None
    )
    lines = []
    for nfe in sorted({r.row["nfe"] for r in compared.results if r.row["nfe"] is not None}):
        parts = [_sentence(compared, nfe, metric) for metric in (quality, "error") if metric]
        lines.append(
            f"At {nfe} NFE, " + ("; ".join(filter(None, parts)) or "no sampler has a result") + "."
        )
    return lines


def _sentence(compared: Comparison, nfe: int, metric: str) -> str:
    there, tied, perfect, beyond = ranking(compared, nfe, metric)
    if not there:
        return ""
    called = compared.names[metric]
    written = [f"{r.row['sampler']} ({number(metric, r.row[metric])})" for r in there]
    by = "nearest to the exact solution" if metric == "error" else f"best by {called}"
    who = f"{', '.join(written[: min(tied, 3)])}" + (f" and {tied - 3} more" if tied > 3 else "")
    after = f", then {written[tied]}" if tied < len(there) else ""
    if perfect and tied > 1:
        score = number(metric, compared.exact.row[metric])
        return f"{tied} samplers cannot be told from the exact solution by {called} ({score}): {who}{after}"
    if beyond:
        truth = f"the truth itself ({number(metric, compared.floor[metric])})"
        if tied == 1:
            return f"{by} is {who}, no worse than {truth}, which is noise{after}"
        return f"a tie, {by}: {who}; {beyond} of them score no worse than {truth}, so their order is noise{after}"
    if tied > 1:
        return f"a tie within noise, {by}: {who}{after}"
    if len(there) == 1:
        return f"{by} is {written[0]}, the only one"
    worse, noise = margin(there[0], there[1], metric)
    if metric == "error":
        how = f"{there[1].row[metric] / max(there[0].row[metric], 1e-300):.2g} times as far"
    else:
        how = f"worse by {number(metric, worse)}" + (f" ± {number(metric, noise)}" if noise else "")
    return f"{by} is {written[0]}, then {written[1]}, {how}"


def number(key: str, value: float) -> str:
    """A score or a time as a person reads it."""
    if key == "order":
        return f"{value:.1f}"
    if key == "accuracy":
        return f"{100 * value:.1f} %"
    if key == "seconds_per_image":
        return f"{1e3 * value:.3g} ms" if value >= 1e-4 else f"{1e6 * value:.2g} µs"
    return f"{value:.3g}"
