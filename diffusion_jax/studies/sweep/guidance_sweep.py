"""Samples judged at several guidance scales: the command guidance_sweep, a preset of the sweep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, outputs, sampling
from diffusion_jax.core import files, parsing, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.metrics import INTERVALS, find
from diffusion_jax.pretrained import folders
from diffusion_jax.report import pictures, sweeps
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.sweep import checks, guidance_mixture
from diffusion_jax.studies.sweep import space as sweep_space
from diffusion_jax.studies.sweep import task as sweep_task
from diffusion_jax.studies.sweep.cells import SHOWN, CellSampler, Scoring
from diffusion_jax.studies.sweep.space import Axis, Space
from diffusion_jax.studies.sweep.task import Results, Task
from diffusion_jax.training import distributed

PREFERRED = ("accuracy", "precision", "frechet", "recall", "coverage")  # first columns of the table

Row = Mapping[str, Any]


# ---- the command
def guidance_sweep(
    config: ConfigDict,
    *,
    workdir: str,
    scales: str,
    guides: str,
    num: int,
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Judge the samples of a model at several guidance scales, and print the table.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the model.
      scales: guidance scales, separated by commas.
      guides: specs of guidance strategies, separated by ';'.
      num: images in each cell.
      features: the features of the images, separated by commas; '' for the default ones.
      metrics: separated by commas; '' for accuracy, frechet and prdc.
      reference: a file of experiments.statistics; '' compares with training images.

    Raises:
      UserError: for guides and scales that the model cannot use.
    """
    values = scales_of(scales)
    specs = [components.full_name("sampler.guide", spec) for spec in parsing.specs(guides)]
    specs = list(dict.fromkeys(specs))
    if not specs:
        raise UserError(
            "--guides is empty; name some, separated by ';', such as 'cfg(); cfg(rescale=0.7)'"
        )
    root = folders.outputs(workdir)
    text = sweep_model(config, Path(workdir), specs, values, num, features, metrics, reference)
    print(
        f"{text}\n{root}/guidance_sweep.png and guidance_sweep_strips.png show it; to use a scale:"
    )
    print(f"python -m experiments.sample --workdir={shlex.quote(str(workdir))} --guidance=SCALE")


def draw_mixture(*, scales: str, out: str) -> None:
    """Draw the picture of a mixture with exact denoisers.

    Args:
      scales: guidance scales, separated by commas.
      out: the picture to write.
    """
    path = outputs.named("out", out, ".png")[".png"]
    guidance_mixture.draw(scales_of(scales), path)
    print(path)


def scales_of(text: str) -> list[float]:
    """Parse the guidance scales of a flag: '0,1,2' -> [0.0, 1.0, 2.0].

    Args:
      text: numbers from 0 to 1000, separated by commas.

    Returns:
      The distinct scales in increasing order.

    Raises:
      UserError: for anything else.
    """
    return sorted(set(parsing.numbers("scales", text, 0, 1000)))


# ---- a trained model
def sweep_model(
    config: ConfigDict,
    workdir: Path,
    guides: Sequence[str],
    scales: Sequence[float],
    count: int,
    features: str,
    metrics: str = "",
    reference: str = "",
) -> str:
    """Sweep the model of a workdir, and write guidance_sweep.md, .json, .png and _strips.png.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the model. The files are written there, or to runs/pretrained/NAME for
        a published one, and finished cells are kept in the folder guidance_sweep beside them.
      guides: specs of guidance strategies.
      scales: the guidance scales.
      count: images in each cell.
      features: feature extractors, separated by commas; '' for the default ones.
      metrics: separated by commas; '' for accuracy, frechet and prdc.
      reference: a file of experiments.statistics; '' compares with training images.

    Returns:
      The text of guidance_sweep.md.
    """
    standard = ("accuracy,frechet,prdc", "frechet")
    chosen = sweep_task.names(features, *((metrics, "") if metrics else standard))
    chosen = chosen._replace(reference=reference)
    space = Space((Axis("sampler.guide", tuple(guides)), Axis("sampler.guidance", tuple(scales))))
    dataset = checks.data_of(config, workdir, trains=False)
    root = folders.outputs(workdir)
    outputs.need_writable(root / "guidance_sweep.json")
    task = sweep_task.make(config, workdir, space, root / "guidance_sweep", count, "grid()")
    checks.check(task, dataset)
    sampler = sweep_task.sampler(task, dataset, sampling.sampling_mesh(config))
    scored = sweep_task.prepare(task, sampler, dataset, chosen)
    results = sweep_task.measure(task, sampler, scored, "guidance sweep")
    rows, real = _rows(task, results), intervals.record(scored.real)
    if distributed.first():
        text = _write(task, sampler, scored, rows, real, root)
        sweep_task.discard_blocks(task, scored)
        return text
    return ""


def _rows(task: Task, results: Results) -> list[dict[str, Any]]:
    """The cells as rows {'guide', 'scale', 'shown': the first images, score: value}.

    Raises:
      UserError: for a cell that failed.
    """
    rows = []
    for number, cell in task.cells.items():
        found = results[number, task.num]
        if found.note:
            raise UserError(f"{sweep_space.overrides(cell.settings)}: {found.note}")
        guide, scale = cell.settings.values()
        rows.append({"guide": guide, "scale": scale, "shown": found.shown, **found.scores})
        rows[-1]["intervals"] = found.intervals
    return rows


def _write(
    task: Task,
    sampler: CellSampler,
    scored: Scoring,
    rows: Sequence[Row],
    real: Mapping[str, Any],
    workdir: Path,
) -> str:
    """Write the files of a sweep, and return the text of its table."""
    cells = list(task.cells.values())
    trained, features = sampler.model(cells[0]), scored.judged.features
    _save(task, sampler, features, workdir, rows, real)
    plan = sampling.method(trained.experiment)
    title = (
        f"Guidance on {workdir.name}, step {trained.step}: {task.num} images a cell, "
        f"{trained.experiment.sampling.name}, {sampling.evaluations(plan)} evaluations"
    )
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    _figures(workdir, rows, real, scales, features[0], title)
    table = report(rows, real, scored.judged.plain)
    text = f"# {title}\n\n{table}\n{INTERVALS}\n"
    files.save_text(workdir / "guidance_sweep.md", text)
    return text


# ---- what is written
def report(rows: Sequence[Row], real: Mapping[str, Any], features: str) -> str:
    """Write a Markdown table of every guide at every scale, with real test images for comparison.

    Args:
      rows: for each guide and scale {'guide', 'scale' (None for a model without guidance), metric:
        score, 'intervals': half the widths, where known}.
      real: the same of as many real test images.
      features: what scores without features depend on, which headings name.
    """
    metrics = [key for key in PREFERRED if key in rows[0]]
    others = dict.fromkeys((*rows[0].get("intervals", {}), *(k for k in rows[0] if "/" in k)))
    metrics += [key for key in others if key not in (*PREFERRED, "density")]

    def cell(key: str, row: Row) -> float | str:
        metric, half = find(key), row.get("intervals", {}).get(key)
        return metric.text(row[key], half) if half or metric.format.unit else row[key]

    every = [*rows, {"guide": "real test images, as many", "scale": None, **real}]
    shown = [
        {"guide": row["guide"], "scale": None if row["scale"] is None else f"{row['scale']:g}"}
        | {key: cell(key, row) for key in metrics if key in row}
        for row in every
    ]
    columns = {"guide": "guide", "scale": "scale"} | {
        key: find(key, features).title for key in metrics
    }
    return markdown_table(shown, columns)


def _save(
    task: Task,
    sampler: CellSampler,
    features: Sequence[str],
    workdir: Path,
    rows: Sequence[Row],
    real: Mapping[str, Any],
) -> None:
    """Write guidance_sweep.json, with the configs of the models that guides use."""
    others = {}
    for cell in task.cells.values():
        if cell.guide not in others:
            trained = sampler.model(cell)
            others[cell.guide] = [found.record for found, _ in trained.experiment.others]
    result = {
        "num": task.num,
        "features": ",".join(features),
        "step": trained.step,
        "weights": trained.weights,
        "config": trained.experiment.record,
        "rows": [{key: value for key, value in row.items() if key != "shown"} for row in rows],
        "real": real,
        "others": others,
        "provenance": provenance.provenance(trained.experiment.record, trained.experiment.seed),
    }
    files.save_json(workdir / "guidance_sweep.json", result)


def _figures(
    workdir: Path,
    rows: Sequence[Row],
    real: Mapping[str, Any],
    scales: Sequence[float],
    features: str,
    title: str,
) -> None:
    """Write the curves, of the scores by the first features, and the strips."""

    def plain(row: Row) -> dict[str, Any]:
        named = {key.removesuffix(f"/{features}"): value for key, value in row.items()}
        return named | ({"intervals": plain(row["intervals"])} if "intervals" in row else {})

    path, shown = workdir / "guidance_sweep.png", [plain(row) for row in rows]
    how = {"reference": plain(real), "title": title, "features": features}
    sweeps.guidance_curves(shown, path, **how)

    def tile(images: np.ndarray) -> np.ndarray:
        return pictures.mosaic(images, 2, scale=max(1, round(28 / images.shape[1])))

    pictures.strips(
        {(row["guide"], row["scale"]): tile(row["shown"]) for row in rows},
        workdir / "guidance_sweep_strips.png",
        columns={scale: f"scale {scale:g}" for scale in scales},
        title=f"The same {SHOWN} seeds at every scale",
    )
