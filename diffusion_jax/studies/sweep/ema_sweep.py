"""Samples judged at several lengths of the weights' average: ema_sweep, a preset of the sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly import outputs, sampling
from diffusion_jax.core import files, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.intervals import Measured
from diffusion_jax.evaluation.metrics import INTERVALS, find
from diffusion_jax.pretrained import folders
from diffusion_jax.report import sweeps
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.sweep import checks
from diffusion_jax.studies.sweep import task as sweep_task
from diffusion_jax.studies.sweep.cells import CellSampler, Scoring
from diffusion_jax.studies.sweep.space import Axis, Space
from diffusion_jax.studies.sweep.task import Results, Task
from diffusion_jax.training import distributed, ema, post_hoc

DOUBTFUL = 0.1  # a misfit above this gives another average than the requested one


def ema_sweep(
    config: ConfigDict,
    *,
    workdir: str,
    lengths: str,
    num: int,
    repeats: int,
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Judge the samples of a run under averages of several lengths, and print the table.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the run.
      lengths: standard deviations of the averages as shares of the run, separated by commas.
      num: images in each set.
      repeats: sets, from disjoint seeds.
      features: the features of the images, separated by commas; '' for the default ones.
      metrics: separated by commas; '' for accuracy and frechet.
      reference: a file of experiments.statistics; '' compares with training images.

    Raises:
      UserError: for a run without snapshots, a length that no power EMA has, and unknown metrics.
    """
    root, values = folders.outputs(workdir), lengths_of(lengths)
    if folders.is_published(workdir):
        raise UserError(
            f"--workdir={workdir} is a published model, which has one set of weights; name the "
            "folder of a run with snapshots (config.ema.powers)"
        )
    outputs.need_writable(root / "ema_sweep.json")
    names = sweep_task.names(features, metrics or "accuracy,frechet")
    chosen = names._replace(reference=reference)
    space = Space((Axis("sampler.ema", tuple(f"post_hoc({value:g})" for value in values)),))
    dataset = checks.data_of(config, workdir, trains=False)
    task = sweep_task.make(config, workdir, space, root / "ema_sweep", num, "grid()")
    checks.check(task, dataset)
    task = sweep_task.repeated(task, repeats)
    sampler = sweep_task.sampler(task, dataset, sampling.sampling_mesh(config))
    scored = sweep_task.prepare(task, sampler, dataset, chosen)
    results = sweep_task.measure(task, sampler, scored, "EMA sweep")
    if not distributed.first():
        return
    rows = rows_of(task, results, Path(workdir) / "ema_snapshots", values)
    text = _write(task, sampler, scored, rows, root, repeats)
    sweep_task.discard_blocks(task, scored)
    print(f"{text}\n{root / 'ema_sweep.png'} shows it; to use a length:")
    key = "--config.sampler.ema='post_hoc(LENGTH)'"
    print(f"python -m experiments.sample --workdir={shlex.quote(str(workdir))} {key}")


def _write(
    task: Task,
    sampler: CellSampler,
    scored: Scoring,
    rows: Sequence[Mapping[str, Any]],
    root: Path,
    repeats: int,
) -> str:
    """Write the files of the sweep, and return the text of its table."""
    trained = sampler.model(next(iter(task.cells.values())))
    title = (
        f"Power EMAs of {root.name} at step {trained.step}: {repeats} x {task.num} images, "
        f"{trained.experiment.sampling.name}"
    )
    record = {
        "step": trained.step,
        "config": trained.experiment.record,
        "num": task.num,
        "repeats": repeats,
        "judged": scored.about,
        "provenance": provenance.provenance(trained.experiment.record),
    }
    files.save_json(root / "ema_sweep.json", {"rows": rows, **record})
    text = f"# {title}\n\n{report(rows, scored.judged.title)}"
    files.save_text(root / "ema_sweep.md", text)
    sweeps.lengths(rows, root / "ema_sweep.png", features=scored.judged.plain, title=title)
    return text


def lengths_of(text: str) -> list[float]:
    """Parse the lengths of a flag: '0.1,0.05' -> [0.05, 0.1].

    Args:
      text: relative lengths (sigma_rel of EDM2: the width of the average as a share of the training
        time), separated by commas.

    Returns:
      The distinct lengths in increasing order.

    Raises:
      UserError: for anything that is not a number, and for a length that no power EMA has.
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--lengths={text}: write relative lengths with commas, such as 0.05,0.1,0.15"
        ) from None
    for length in found:
        ema.gamma(length)
    return found


def rows_of(
    task: Task, results: Results, snapshots: Path, lengths: Sequence[float]
) -> list[dict[str, Any]]:
    """The lengths as rows {'length', 'misfit', metric: (mean over sets, half its interval)}.

    Args:
      task: the sweep, repeated for every set.
      results: its scores.
      snapshots: the folder of the snapshots.
      lengths: of the cells of each set, in their order.

    Raises:
      UserError: for a length whose images cannot be judged.
    """
    rows = []
    for i, length in enumerate(lengths):
        own = [results[number, task.num] for number in task.cells if number % len(lengths) == i]
        if failed := next((found.note for found in own if found.note), ""):
            raise UserError(f"--lengths={length:g}: {failed}")
        sets = [
            {name: Measured(v, found.intervals.get(name)) for name, v in found.scores.items()}
            for found in own
        ]
        mean = intervals.mean_of_sets(sets)
        scores = {name: (each.value, each.interval or 0.0) for name, each in mean.items()}
        misfit = post_hoc.fitted(snapshots, length).misfit
        rows.append({"length": length, "misfit": misfit, **scores})
    return rows


def report(rows: Sequence[Mapping[str, Any]], title: Callable[[str], str]) -> str:
    """Write a Markdown table, with an asterisk at lengths that the snapshots approximate badly.

    Args:
      rows: those of `rows_of`. A misfit is the relative error of the average that is made from the
        snapshots, and more than DOUBTFUL of it is marked.
      title: name of a score -> heading of its column.
    """
    metrics = [key for key in rows[0] if key not in ("length", "misfit")]
    shown = [
        {
            "length": f"{row['length']:g}" + "*" * (row["misfit"] > DOUBTFUL),
            "misfit": f"{100 * row['misfit']:.2g} %",
        }
        | {name: find(name).text(*row[name]) for name in metrics}
        for row in rows
    ]
    headings = {"length": "length", "misfit": "misfit"} | {name: title(name) for name in metrics}
    table = f"{markdown_table(shown, headings)}\n{INTERVALS}\n"
    doubtful = any(row["misfit"] > DOUBTFUL for row in rows)
    return table + ("\n*: too few snapshots for this length\n" if doubtful else "")
