"""Optimization of the times of a sampler's grid for one model."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import files, provenance, reading
from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build, members
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import features, frechet, points
from diffusion_jax.processes import gaussian
from diffusion_jax.report import curves
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.samplers import base, grids
from diffusion_jax.samplers import placement as placement_
from diffusion_jax.studies import comparison
from diffusion_jax.studies.comparison import NAMES, QUALITY

HAND_MADE = (
    "auto",
    "karras",
    "uniform_logsnr",
    "uniform",
    "quadratic",
    "cosine",
    "flow_shift",
    "align_your_steps",
)

PLACED, SHIFT = "placed", "shift"
MARGIN = 0.02  # of both scores' logarithms, which polishing tries to gain in each

FIRST_SEED = (
    1_000_000  # of the starts that times are placed by; far from those that they are judged by
)


def checked(spec: str, budgets: Sequence[int], process):
    """The sampler of a spec. UserError if its times cannot be placed, or a budget buys no step of
    it.
    """
    sampler = build(components.SAMPLERS, spec)
    if base.adaptive(sampler):
        raise UserError(f"--sampler={spec} chooses its own steps: there are no times to place")
    if base.draws_noise(sampler, process):
        raise UserError(
            f"--sampler={spec} draws noise: times can be placed for a deterministic sampler only"
        )
    short = [nfe for nfe in budgets if base.points(sampler, nfe) < 2]
    if short or not budgets:
        raise UserError(
            f"--nfe={','.join(map(str, budgets))}: budgets are needed that buy at least one step of {spec}"
        )
    return sampler


def place(
    sampler,
    starts,
    held_out,
    nfe: int,
    *,
    iterations: int,
    tries: int,
    polish: int = 0,
    like: Sequence[float] | None = None,
) -> tuple[list[dict], Any]:
    """(a row for every grid, the placed times) at one budget. starts, held_out: (Subject, the exact
    x0 of its first seeds).

    polish: evaluations of the combined score, below, on all seeds of `starts`; 0: the trajectory
      error alone decides.
    like: log-SNRs that were placed for another budget; times spread as those are one more grid to
      begin from.
    """
    n, (subject, truth), (judging, solved) = base.points(sampler, nfe), starts, held_out
    hand = dict.fromkeys(grids.spec(name, sampler) for name in HAND_MADE)  # 'auto' by its name
    hand = {name: build(components.GRIDS, name, subject.process, n) for name in hand}
    first = hand | ({"spread": spread(subject.process, like, n)} if like is not None else {})
    run, judge = comparison.runner(subject, sampler, n), comparison.runner(judging, sampler, n)
    measured = functools.cache(
        lambda name: _measured(subject, truth, run(first[name])[0], quality=bool(polish))
    )
    order = sorted(first, key=lambda name: measured(name)["error"])
    keys, cond = subject.keys[: len(truth)], jax.tree.map(lambda c: c[: len(truth)], subject.cond)
    x = base.start(subject.process, keys, truth.shape, subject.dtype)
    problem = sampler, subject.denoise(subject.params), subject.process, keys, x, jnp.asarray(truth)
    found = [
        placement_.optimize(
            *problem,
            first[name],
            cond,
            iterations=iterations,
            tell=_tell(nfe, name, "error on the starts"),
        )
        for name in order[:tries]
    ]
    best = min(found, key=lambda placement: placement.error).ts
    if polish:
        score = _combined([measured(name) for name in hand])

        def worth(ts):
            return score(_measured(subject, truth, run(ts)[0], quality=True))

        placed = sorted([*first.values(), best], key=worth)[:tries]
        found = [
            placement_.polish(
                worth,
                subject.process,
                ts,
                evaluations=polish,
                tell=_tell(nfe, f"start {i + 1}", "score"),
            )
            for i, ts in enumerate(placed)
        ]
        best = min(found, key=lambda placement: placement.error).ts

    def row(name, ts) -> dict:
        out = judge(ts)[0]
        return {"sampler": name, "nfe": nfe} | _measured(
            judging, solved, out, quality=True, shift=True
        )

    return [row(name, ts) for name, ts in {**hand, PLACED: best}.items()], best


def spread(process, logsnr: Sequence[float], n: int):
    """n times whose log-SNRs are spread as these, with the same ends: the same share of the times
    at every level.
    """
    lam = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(logsnr)), np.asarray(logsnr, float))
    ts = gaussian.time_of_logsnr(process, jnp.asarray(lam, jnp.result_type(float)))
    return ts.at[0].set(process.t_max)


def _measured(subject, truth, out, *, quality: bool, shift: bool = False) -> dict[str, float]:
    """What a grid's samples score: the error to the exact solutions, as many as there are, and what
    else is asked for.
    """
    few = len(truth)
    scores = {"error": _rms(out[:few], truth)}
    if shift:
        scores[SHIFT] = _shift(subject.finish(out[:few]), subject.finish(truth))
    return scores | (subject.judge(subject.finish(out), None) if quality else {})


def _combined(hand: Sequence[dict]):
    """scores -> log(error / the best hand-made one's) + the same of the quality that decides; what
    is no gain costs sixfold.
    """
    parts = ["error", *(metric for metric in QUALITY if metric in hand[0])]
    best = {part: min(scores[part] for scores in hand) for part in parts}

    def score(scores: dict) -> float:
        gains = [math.log(max(scores[part], 1e-12) / best[part]) for part in parts]
        return (
            sum(gain + 5 * max(gain + MARGIN, 0.0) for gain in gains)
            if all(map(math.isfinite, gains))
            else 1e3
        )

    return score


def _shift(x, exact) -> float:
    """How far the solver moves the law of its samples from that of the exact solutions of the same
    seeds.

    Fréchet distance of the pixels of images (uint8), sliced Wasserstein distance of points. No
    sampling noise is in it, as there is in a distance to data.
    """
    if x.dtype != np.uint8:
        return points.sliced_wasserstein(x, exact)
    return frechet.distance(*(frechet.root_of(features.pixels(images)) for images in (x, exact)))


def _rms(x, truth) -> float:

    return (
        float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64) - truth))))
        if np.isfinite(x).all()
        else float("inf")
    )


def _tell(nfe: int, name: str, what: str):
    def tell(i, value):
        print(f"{nfe} NFE from {name}: {i}, {what} {value:.4g}", file=sys.stderr, flush=True)

    return tell


def report(rows: list[dict], measures: Sequence[str]) -> str:
    """A line for each budget: the best hand-made grid beside the placed one, by every measure."""
    names, table = {SHIFT: "distance to the exact samples"} | NAMES, []
    for nfe in sorted({row["nfe"] for row in rows}):
        line = {"nfe": nfe}
        for metric in measures:
            hand = min(
                (row for row in rows if row["nfe"] == nfe and row["sampler"] != PLACED),
                key=lambda row: row[metric],
            )
            placed = next(row for row in rows if row["nfe"] == nfe and row["sampler"] == PLACED)
            line |= {
                f"{metric}.hand": f"{hand[metric]:.3g} ({hand['sampler']})",
                f"{metric}.placed": f"{placed[metric]:.3g}",
                f"{metric}.ratio": f"{hand[metric] / placed[metric]:.2f}",
            }
        table.append(line)
    columns = {"nfe": "NFE"}
    for metric in measures:
        columns |= {
            f"{metric}.hand": f"{names[metric]}, best hand-made grid",
            f"{metric}.placed": PLACED,
            f"{metric}.ratio": "times smaller",
        }
    return markdown_table(table, columns)


def optimize(
    starts,
    held_out,
    spec: str,
    budgets: Sequence[int],
    stem: Path,
    *,
    iterations: int,
    tries: int,
    polish: int = 0,
) -> str:
    """Place a sampler's times on the Subject `starts`, for every budget; measure on `held_out`;
    write stem.json, .md and .png.

    Budgets that stem.json has already, of the same subjects and settings, are taken from there.
    Returns the text of stem.md.
    """
    sampler, file = checked(spec, budgets, starts.process), Path(f"{stem}.json")
    about = {
        "sampler": spec,
        "starts": len(starts.keys),
        "num": len(held_out.keys),
        "iterations": iterations,
        "tries": tries,
        "polish": polish,
        "subject": provenance.config_hash(held_out.identity),
    }
    kept = _recall(file, about)
    left = [nfe for nfe in budgets if not any(row["nfe"] == nfe for row in kept["rows"])]
    if left or "exact" not in kept:
        print("solving for the exact trajectories ...", file=sys.stderr)
        (truth, _), (solved, what) = starts.exact(), held_out.exact()
        kept["exact"] = {"what": what, "solved": len(solved)}
        if len(solved) == len(held_out.keys):
            kept["exact"] |= held_out.judge(held_out.finish(solved), None)
        kept["floor"] = held_out.floor
    for nfe in left:
        nearest = min(kept["logsnr"].values(), key=lambda lam: abs(len(lam) - nfe), default=None)
        rows, ts = place(
            sampler,
            (starts, truth),
            (held_out, solved),
            nfe,
            iterations=iterations,
            tries=tries,
            polish=polish,
            like=nearest,
        )
        kept["logsnr"][str(len(ts))] = np.asarray(
            gaussian.logsnr(starts.process, jnp.asarray(ts)), float
        ).tolist()
        kept["rows"] += rows
        kept["provenance"] = provenance.provenance(held_out.identity)
        files.save_json(file, kept)
    return write(kept, f"Times placed for {spec} on {held_out.name}", stem)


def _rule():
    """What a file of placed grids holds: FILE of samplers/grids.py, with a row of every grid at
    every budget, one PLACED.
    """
    score = reading.number(finite=False)
    row = reading.record(
        {"nfe": reading.integer(1), "sampler": reading.text(1), "error": score}, others=score
    )
    exact = reading.record({"what": reading.text(1), "solved": reading.integer(1)}, others=score)

    def rows(value, place):
        reading.items(row)(value, place)
        for nfe in {each["nfe"] for each in value}:
            placed = [each["sampler"] == PLACED for each in value if each["nfe"] == nfe]
            if placed.count(True) != 1 or all(placed):
                raise reading.Mismatch(
                    f"{place} has not one placed grid and a hand-made one at {nfe} NFE"
                )

    def file(value, place):
        grids.FILE(value, place)
        reading.record({"rows": rows, "exact": exact})(value, place)

    return file


def _recall(file: Path, about: dict) -> dict:
    """What the file holds if it is about the same, else a new beginning."""
    kept = reading.kept(file, lambda path: reading.json_file(path, _rule())) or about
    if {key: kept.get(key) for key in about} != about:
        print(f"{file} was made with other settings, and is made anew", file=sys.stderr)
        kept = about
    return {"logsnr": {}, "rows": []} | kept


def write(kept: dict, title: str, stem: Path) -> str:
    """stem.md and stem.png of what is kept. Returns the text of stem.md."""
    rows, exact, floor = kept["rows"], kept["exact"], kept.get("floor", {})
    quality = [metric for metric in comparison.QUALITY if metric in rows[0]]
    measures = [
        "error",
        *(metric for metric in (SHIFT, *quality) if all(metric in row for row in rows)),
    ]
    scores = ", ".join(
        f"{comparison.NAMES[metric]} {exact[metric]:.3g}" for metric in quality if metric in exact
    )
    truth = ", ".join(
        f"{comparison.NAMES[metric]} {floor[metric]:.3g}" for metric in quality if metric in floor
    )
    noise = (
        f" As many samples of the truth itself score: {truth}; differences between scores below that are noise."
        if truth
        else ""
    )
    text = (
        f"# {title}\n\nPlaced by {kept['starts']} seeds; measured on {kept['num']} others, those with exact solutions "
        f"on the first {exact['solved']}. The exact solution is {exact['what']}"
        + (f"; itself it scores: {scores}" if scores else "")
        + f".{noise}\n\n{report(rows, measures)}"
    )
    files.save_text(Path(f"{stem}.md"), text)
    lengths = {int(n): lam for n, lam in kept["logsnr"].items()}
    curves.placed_times(rows, lengths, measures, Path(f"{stem}.png"), title=title, floor=floor)
    return text


# ---- the command
def grid_name(name: str, spec: str) -> str:
    """The name that was asked for, or one from the sampler's. UserError for that of a hand-made
    grid.
    """
    if name == "auto" or name in members(components.GRIDS):
        raise UserError(f"--name={name} is a grid of the family; choose another name")
    if "/" in name:
        raise UserError(f"--name={name} is a path; give a name alone, and the folder by --out")
    return name or _plain(spec if "(" in spec else spec.rpartition(".")[2])


def _plain(text: str) -> str:
    """Text as the name of a file."""
    return re.sub("[^A-Za-z0-9]+", "_", text).strip("_")
