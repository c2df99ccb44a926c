"""The times of a sampler's grid, optimized for one model or target: the command optimize_grid."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, outputs, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.build import build, members
from diffusion_jax.core import parsing, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Process
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.estimators import Scores
from diffusion_jax.pretrained import folders
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base, placement
from diffusion_jax.studies import scoring, store, subjects
from diffusion_jax.studies.drawing import Runner, runner
from diffusion_jax.studies.grids import file as grid_file
from diffusion_jax.studies.grids import report as grid_report
from diffusion_jax.studies.grids.report import PLACED
from diffusion_jax.studies.grids.scores import Solved, combined, measure
from diffusion_jax.studies.samplers.comparison import file_name
from diffusion_jax.studies.subject import Subject
from diffusion_jax.training import distributed

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
FIRST_SEED = 1_000_000  # of the trajectories that times are placed by; the others begin at 0


# ---- the command
def optimize_grid(
    config: ConfigDict,
    *,
    workdir: str,
    sampler: str,
    nfe: str,
    starts: int,
    num: int,
    solved: int,
    iterations: int,
    tries: int,
    polish: int,
    name: str,
    out: str,
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Optimize the times of a sampler for the model of a workdir, and print the report.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the model.
      sampler: the spec of a deterministic sampler.
      nfe: budgets of network evaluations, separated by commas.
      starts: trajectories by which the times are placed.
      num: other seeds, by which every grid is measured.
      solved: how many of those are solved exactly.
      iterations: number of iterations of Levenberg-Marquardt, at most.
      tries: grids to start from.
      polish: evaluations of error and quality together; 0 skips them.
      name: the name of the grid; '' for one made from the sampler's.
      out: the folder to write to; '' for WORKDIR/grids.
      features: as of `subjects.of_model`.
      metrics: likewise.
      reference: likewise.

    Raises:
      UserError: before anything is solved, for a sampler whose times cannot be placed, a budget
        without a step, and a name that cannot be used.
    """
    name, budgets = grid_name(name, sampler), sorted(set(parsing.integers("nfe", nfe, 1, 10_000)))
    check_sampler(sampler, budgets, build(components.PROCESSES, config.process))
    stem = outputs.folder("out", out or folders.outputs(workdir) / "grids", f"{name}.json") / name
    scoring.requested(features, metrics)
    judging = {"features": features, "metrics": metrics, "reference": reference}
    counts = starts, max(starts, num) if polish else starts, num, solved
    both = _subjects_of_workdir(config, workdir, *counts, **judging)
    text = optimize(*both, sampler, budgets, stem, Search(iterations, tries, polish))
    grid = f"""'stored("{stem}.json")'""" if out else name
    keys = f"--config.sampler.name='{sampler}' --config.sampler.grid={grid}"
    _print(text, stem, f"sample --workdir={shlex.quote(str(workdir))} {keys}")


def optimize_on_target(
    *,
    target: str,
    process: str,
    sampler: str,
    nfe: str,
    starts: int,
    num: int,
    iterations: int,
    tries: int,
    name: str,
    out: str,
) -> None:
    """Optimize the times of a sampler for an analytic target, in float64, and print the report.

    Args:
      target: the spec of a target, such as 'gmm8'.
      process: the spec of a process, such as 'schedules.EDM()'.
      sampler: the spec of a deterministic sampler.
      nfe: budgets of network evaluations, separated by commas.
      starts: number of trajectories by which the times are placed.
      num: number of other seeds, by which every grid is measured.
      iterations: number of iterations of Levenberg-Marquardt, at most.
      tries: number of grids that the search starts from.
      name: the name of the grid; '' for one made from the sampler's.
      out: the folder to write to; '' for runs/grids_TARGET.

    Raises:
      UserError: as `optimize_grid`.
    """
    name, budgets = grid_name(name, sampler), sorted(set(parsing.integers("nfe", nfe, 1, 10_000)))
    check_sampler(sampler, budgets, build(components.PROCESSES, process))
    stem = outputs.folder("out", out or f"runs/grids_{file_name(target)}", f"{name}.json") / name
    seeds = [*range(FIRST_SEED, FIRST_SEED + starts)], [*range(num)]
    with jax.enable_x64(True):
        both = [subjects.of_target(target, process, part) for part in seeds]
        text = optimize(*both, sampler, budgets, stem, Search(iterations, tries))
    samplers = f"""'{sampler}@stored("{stem}.json")'"""
    names = f"--target='{target}' --process='{process}'"
    _print(text, stem, f"compare_samplers {names} --samplers={samplers}")


def _print(text: str, stem: Path, use: str) -> None:
    print(f"{text}\n{stem}.json, .md, .png; to use it: python -m experiments.{use}")


def grid_name(name: str, sampler: str) -> str:
    """The requested name of a grid, or one made from the sampler's.

    Args:
      name: the value of --name; '' for a name that is made from the sampler's.
      sampler: the spec of the sampler; only its last part is used unless it has arguments.

    Raises:
      UserError: for the name of a grid of the family, and for a path.
    """
    if components.full_name("sampler.grid", name.lower()) in ("auto", *members(components.GRIDS)):
        raise UserError(f"--name={name} is a grid of the family; choose another name")
    if "/" in name:
        raise UserError(f"--name={name} is a path; give a name alone, and the folder by --out")
    return name or file_name(sampler if "(" in sampler else sampler.rpartition(".")[2])


def check_sampler(spec: str, budgets: Sequence[int], process: Process) -> base.Sampler:
    """Build the sampler of a spec, and check that its times can be placed.

    Args:
      spec: the value of --sampler, such as 'multistep.dpmpp_2m'.
      budgets: numbers of network evaluations, for each of which the sampler must have a step.
      process: the process; some samplers draw noise on some processes only.

    Raises:
      UserError: for an adaptive or a stochastic sampler, and for a budget without a step.
    """
    sampler = build(components.SAMPLERS, spec)
    if base.adaptive(sampler):
        raise UserError(f"--sampler={spec} chooses its own steps: there are no times to place")
    if base.draws_noise(sampler, process):
        raise UserError(
            f"--sampler={spec} draws noise: times can be placed for a deterministic sampler only"
        )
    if not budgets or any(base.points(sampler, nfe) < 2 for nfe in budgets):
        said = ",".join(map(str, budgets))
        raise UserError(f"--nfe={said}: budgets are needed that allow at least one step of {spec}")
    return sampler


def _subjects_of_workdir(
    config: ConfigDict, root: str, starts: int, count: int, num: int, solved: int, **judging: str
) -> list[Subject]:
    """The subject by whose seeds times are placed, and the one by which they are measured.

    The first has `count` samples: polishing needs as many as the score on the held-out seeds has.
    """
    mesh = sampling.sampling_mesh(config)
    trained, dataset = workdirs.load(root, config, mesh), workdirs.images(config, root)
    seeds = [*range(FIRST_SEED, FIRST_SEED + count)], [*range(num)]
    name = Path(root).name
    return [
        subjects.of_model(trained, dataset, part, name, solved=few, mesh=mesh, **judging)
        for part, few in zip(seeds, (starts, solved))
    ]


# ---- the search
class Search(NamedTuple):
    """The effort of an optimization of times.

    Attributes:
      iterations: number of iterations of Levenberg-Marquardt, at most.
      tries: how many of the best grids are optimized.
      polish: evaluations of the combined score of error and quality on all seeds that times are
        placed by; 0: the trajectory error alone decides.
    """

    iterations: int
    tries: int
    polish: int = 0


def optimize(
    starts: Subject,
    held_out: Subject,
    spec: str,
    budgets: Sequence[int],
    stem: Path,
    search: Search,
) -> str:
    """Place a sampler's times for every budget; write stem.json, .md and .png.

    Budgets that stem.json has already, from the same subjects and settings, are taken from there.

    Args:
      starts: the subject by whose seeds times are placed.
      held_out: the subject by whose seeds every grid is measured.
      spec: the sampler.
      budgets: numbers of network evaluations.
      stem: the path of the files, without their endings.
      search: how long times are optimized.

    Returns:
      The text of stem.md.
    """
    sampler = check_sampler(spec, budgets, starts.process)
    settings = {
        "sampler": spec,
        "starts": len(starts.keys),
        "num": len(held_out.keys),
        **search._asdict(),
        "subject": provenance.config_hash(held_out.identity),
    }
    table = grid_file.open_grids(Path(f"{stem}.json"), settings, held_out.identity)
    kept = table.content
    left = [nfe for nfe in budgets if not any(row["nfe"] == nfe for row in table.rows)]
    if left or "exact" not in kept:
        print("solving for the exact trajectories ...", file=sys.stderr)
        (truth, _), (solved, what) = starts.exact(), held_out.exact()
        kept["exact"] = {"what": what, "solved": len(solved)}
        if len(solved) == len(held_out.keys):
            kept["exact"] |= intervals.record(held_out.measured(held_out.finish(solved)))
        kept["floor"] = held_out.judging.truth_scores
        kept["floor_intervals"] = intervals.halves(held_out.judging.truth)
        kept["features"] = held_out.judging.features
    for nfe in left:
        nearest = min(kept["logsnr"].values(), key=lambda lam: abs(len(lam) - nfe), default=None)
        both = Solved(starts, truth), Solved(held_out, solved)
        rows, ts = place(sampler, *both, nfe, search, like=nearest)
        kept["logsnr"][str(len(ts))] = _logsnr(starts.process, ts)
        table.rows.extend(rows)
        kept["titles"] = grid_report.titles(rows[0], kept["features"])
        store.save(table)
    content = {**kept, **settings}
    if not distributed.first():
        return ""
    return grid_report.write(content, f"Times placed for {spec} on {held_out.name}", stem)


def place(
    sampler: base.Sampler,
    starts: Solved,
    held_out: Solved,
    nfe: int,
    search: Search,
    *,
    like: Sequence[float] | None = None,
) -> tuple[list[dict[str, Any]], Array]:
    """Place times at one budget.

    Args:
      sampler: a deterministic sampler.
      starts: what times are placed by.
      held_out: what every grid is measured by.
      nfe: the budget.
      search: how long times are optimized.
      like: log-SNRs that were placed for another budget; times that are spread as those are one
        more grid to start from.

    Returns:
      (a row for every grid, the placed times).
    """
    n, process = base.points(sampler, nfe), starts.subject.process
    hand = dict.fromkeys(base.grid_spec(name, sampler) for name in HAND_MADE)  # 'auto' by its name
    hand = {name: build(components.GRIDS, name, process, n) for name in hand}
    first = hand | ({} if like is None else {"spread": spread(process, like, n)})
    run = runner(starts.subject, sampler, n)
    judging = runner(held_out.subject, sampler, n)
    quality = bool(search.polish)
    measured = functools.cache(lambda name: measure(starts, run, first[name], quality=quality))
    order = sorted(first, key=lambda name: measured(name)["error"])[: search.tries]
    best = _optimized(sampler, starts, {name: first[name] for name in order}, nfe, search)
    if quality:
        score = combined([measured(name) for name in hand])
        best = _polished(starts, run, score, [*first.values(), best], nfe, search)

    def row(name: str, ts: Array) -> dict[str, Any]:
        how = {"quality": True, "shift": True, "grouped": True}
        return {"sampler": name, "nfe": nfe} | measure(held_out, judging, ts, **how)

    return [row(name, ts) for name, ts in {**hand, PLACED: best}.items()], best


def spread(process: Process, logsnr: Sequence[float], n: int) -> Array:
    """Place n times so that their log-SNRs have the distribution of the given ones.

    Args:
      process: the process, whose t_max is the first time.
      logsnr: log-SNRs in increasing order, from the noisiest time to the cleanest; they are
        interpolated linearly by their place in the list.
      n: number of times, at least 2.

    Returns:
      Times (n,) in decreasing order.
    """
    lam = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(logsnr)), np.asarray(logsnr, float))
    ts = gaussian.time_of_logsnr(process, jnp.asarray(lam, jnp.result_type(float)))
    return ts.at[0].set(process.t_max)


def _optimized(
    sampler: base.Sampler, starts: Solved, first: Mapping[str, Array], nfe: int, search: Search
) -> Array:
    """The best times by trajectory error, by gradient descent from each of these grids."""
    subject, truth = starts
    keys, cond = subject.keys[: len(truth)], jax.tree.map(lambda c: c[: len(truth)], subject.cond)
    x = base.start(subject.process, keys, truth.shape, subject.dtype)
    denoise = subject.denoise(subject.params)
    problem = sampler, denoise, subject.process, keys, x, jnp.asarray(truth)
    found = [
        placement.optimize(
            *problem,
            ts,
            cond,
            iterations=search.iterations,
            report=_printer(nfe, name, "error on the starts"),
        )
        for name, ts in first.items()
    ]
    return min(found, key=lambda each: each.error).ts


def _polished(
    starts: Solved,
    run: Runner,
    score: Callable[[Scores], float],
    candidates: Sequence[Array],
    nfe: int,
    search: Search,
) -> Array:
    """The best times by the combined score, by the simplex of Nelder and Mead."""

    def worth(ts: Array) -> float:
        return score(measure(starts, run, ts, quality=True))

    found = [
        placement.polish(
            worth,
            starts.subject.process,
            ts,
            evaluations=search.polish,
            report=_printer(nfe, f"start {i + 1}", "score"),
        )
        for i, ts in enumerate(sorted(candidates, key=worth)[: search.tries])
    ]
    return min(found, key=lambda each: each.error).ts


def _printer(nfe: int, name: str, what: str) -> Callable[[int, float], None]:
    def report(i: int, value: float) -> None:
        print(f"{nfe} NFE from {name}: {i}, {what} {value:.4g}", file=sys.stderr, flush=True)

    return report


def _logsnr(process: Process, ts: Array) -> list[float]:
    return np.asarray(gaussian.logsnr(process, jnp.asarray(ts)), float).tolist()
