"""Samples judged at several guidance scales: the command guidance_sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import denoiser, experiment, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, npz, parsing, provenance, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.evaluation import choice, generate, judge
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import pictures, sweeps
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies import guidance_mixture, store
from diffusion_jax.training import sharding

SHOWN = 10  # images in a strip
PREFERRED = ("accuracy", "precision", "frechet", "recall", "coverage")  # first columns of the table

Row = Mapping[str, Any]


# ---- the command
def guidance_sweep(
    config: ConfigDict, *, workdir: str, scales: str, guides: str, num: int, features: str
) -> None:
    """Judge the samples of a model at several guidance scales, and print the table.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the model.
      scales: guidance scales, separated by commas.
      guides: specs of guidance strategies, separated by ';'.
      num: images in each cell.
      features: the features of the images, separated by commas; '' for the default ones.

    Raises:
      UserError: for guides and scales that the model cannot use.
    """
    values = scales_of(scales)
    specs = [part.strip() for part in guides.split(";") if part.strip()]
    if not specs:
        raise UserError(
            "--guides is empty; name some, separated by ';', such as 'cfg(); cfg(rescale=0.7)'"
        )
    root = Path(workdir)
    text = sweep_model(config, root, specs, values, num, features)
    print(
        f"{text}\n{root}/guidance_sweep.png and guidance_sweep_strips.png show it; to use a scale:"
    )
    print(f"python -m experiments.sample --workdir={root} --guidance=SCALE")


def draw_mixture(*, scales: str, out: str) -> None:
    """Draw the picture of a mixture with exact denoisers.

    Args:
      scales: guidance scales, separated by commas.
      out: the picture to write.
    """
    path = parsing.output("out", out, ".png")[".png"]
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
) -> str:
    """Sweep the model of a workdir, and write guidance_sweep.md, .json, .png and _strips.png there.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the model; finished cells are kept in its folder guidance_sweep.
      guides: specs of guidance strategies.
      scales: the guidance scales.
      count: images in each cell.
      features: feature extractors, separated by commas; '' for the default ones.

    Returns:
      The text of guidance_sweep.md.
    """
    mesh = sampling.sampling_mesh(config)
    trained = workdirs.load(workdir, config, mesh)
    experiment.need_images(trained.experiment)
    models = _with_guides(trained, guides, scales, workdir, mesh)
    dataset = workdirs.images(config, workdir)
    labels, cond = sample_conditions.for_judging(trained.experiment, dataset, count)
    chosen = parsing.names(features) or [choice.default_features(dataset.train)]
    metrics = ("accuracy", "frechet", "prdc")
    judged = judge.against(dataset.train, labels, features=chosen, metrics=metrics, count=count)
    # real images are as many as in a cell: recall depends on their number
    real = judge.on_real(dataset.train, dataset.test, judged, count)
    settings = _settings(trained, chosen, count)
    batch, folder = trained.experiment.sampling.batch_size, workdir / "guidance_sweep"
    rows = sweep(models, scales, judged, cond, count, batch, mesh, folder, settings)
    _save(trained, workdir, models, settings, rows, real)
    plan = sampling.method(trained.experiment)
    title = (
        f"Guidance on {workdir.name}, step {trained.step}: {count} images a cell, "
        f"{trained.experiment.sampling.name}, {sampling.evaluations(plan)} evaluations"
    )
    _figures(workdir, rows, real, scales, chosen[0], title)
    text = f"# {title}\n\n{report(rows, real)}"
    files.save_text(workdir / "guidance_sweep.md", text)
    return text


def _with_guides(
    trained: Trained,
    guides: Sequence[str],
    scales: Sequence[float],
    workdir: Path,
    mesh: jax.sharding.Mesh,
) -> dict[str, Trained]:
    """The model with each guide; UserError for a guide that it cannot use."""
    models = {guide: workdirs.with_guide(trained, guide, workdir, mesh) for guide in guides}
    for guide, model in models.items():
        for scale in scales:
            denoiser.is_guided(model.experiment, scale, key=f"--guides='{guide}' at scale")
    return models


def _settings(trained: Trained, features: Sequence[str], count: int) -> dict[str, Any]:
    """The settings on which every cell depends besides its guide and scale."""
    varied = ("guide", "guidance", "batch_size")
    record = trained.experiment.record
    sampler = {key: value for key, value in record["sampler"].items() if key not in varied}
    return {
        "num": count,
        "features": ",".join(features),
        "step": trained.step,
        "weights": trained.weights,
        "config": {**record, "sampler": sampler},
    }


# ---- the cells
def sweep(
    models: Mapping[str, Trained],
    scales: Sequence[float],
    judged: judge.Judge,
    cond: Cond,
    count: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    folder: Path,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Draw and judge every cell that the folder does not hold.

    Args:
      models: guide -> the model with it.
      scales: the guidance scales.
      judged: images -> scores.
      cond: the conditions of the `count` images, the same in every cell, as their seeds are.
      count: images in each cell.
      batch_size: images that are drawn at once.
      mesh: the devices on which images are drawn.
      folder: where cells are kept.
      settings: what every cell depends on besides its guide and scale.

    Returns:
      A row {'guide', 'scale', 'shown': the first images, score: value} for each cell.
    """

    def path(guide: str, scale: float) -> Path:
        identity = {**settings, "guide": guide, "scale": scale}
        return store.cell_path(folder, identity, digits=16, indent=2)

    cells = [(guide, scale, path(guide, scale)) for guide in models for scale in scales]
    missing = [cell for cell in cells if store.load(cell[2], _read) is None]
    with progress(len(missing) * count, "guidance sweep", enabled=bool(missing)) as advance:
        runs = {guide: _sampler(trained, mesh) for guide, trained in models.items()}
        for guide, scale, file in missing:
            images = _draw(runs[guide], scale, cond, count, batch_size, advance)
            store.save_cell(file, "scores", judged(images), {"images": images[:SHOWN]})
    return [{"guide": guide, "scale": scale} | _read(file) for guide, scale, file in cells]


def _read(path: Path) -> dict[str, Any]:
    """A finished cell, {'shown': images, score: value}; UserError for a file that is damaged."""
    images = {"images": npz.ArraySpec("u", (None, None, None, None))}
    rule = reading.table(reading.number(finite=False))
    scores, arrays = store.read_cell(path, "scores", rule, images)
    return {"shown": arrays["images"]} | scores


Draw = Callable[[Key, Cond, float], Array]


def _sampler(trained: Trained, mesh: jax.sharding.Mesh) -> Draw:
    """Make the function (keys, cond, scale) -> images, one program for all scales.

    At the neutral scale the guided model is the model itself.
    """
    model, plan = trained.experiment, sampling.method(trained.experiment)
    run = sampling.sample_fn(model, plan.sampler, guided=True, clip=plan.clip, noise=plan.noise)
    everywhere, params = sharding.spread(run, mesh), denoiser.ensemble(model, trained.params)
    ts = np.asarray(plan.ts)
    return lambda keys, cond, scale: everywhere(params, (keys, cond), ts, np.float32(scale))


def _draw(
    run: Draw,
    scale: float,
    cond: Cond,
    count: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """The uint8 images of the seeds 0 to count - 1 and their conditions."""
    left = count

    def draw(keys: Key, cond: Cond) -> Array:
        nonlocal left
        images = run(keys, cond, scale)
        advance(min(left, len(keys)))
        left -= len(keys)
        return images

    keys = generate.seeds_to_keys(range(count))
    return generate.generate(draw, keys, cond, batch_size=min(batch_size, count), progress=False)


# ---- what is written
def report(rows: Sequence[Row], real: Mapping[str, float]) -> str:
    """Write a Markdown table of every guide at every scale, with real test images for comparison.

    Args:
      rows: for each guide and scale {'guide', 'scale' (None for a model without guidance), metric:
        score}.
      real: the scores of as many real test images, by metric.
    """
    metrics = [key for key in PREFERRED if key in rows[0]]
    metrics += [key for key in rows[0] if key.partition("/")[1]]

    def cell(key: str, value: float) -> float | str:
        metric = find(key)
        return metric.text(value) if metric.format.unit else value

    every = [*rows, {"guide": "real test images, as many", "scale": None, **real}]
    shown = [
        {"guide": row["guide"], "scale": None if row["scale"] is None else f"{row['scale']:g}"}
        | {key: cell(key, row[key]) for key in metrics if key in row}
        for row in every
    ]
    columns = {"guide": "guide", "scale": "scale"} | {
        key: find(key, "pixels").title for key in metrics
    }
    return markdown_table(shown, columns)


def _save(
    trained: Trained,
    workdir: Path,
    models: Mapping[str, Trained],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    real: Mapping[str, float],
) -> None:
    """Write guidance_sweep.json, with the configs of the models that guides use."""
    others = {
        guide: [found.record for found, _ in model.experiment.others]
        for guide, model in models.items()
    }
    result = {
        "rows": [{key: value for key, value in row.items() if key != "shown"} for row in rows],
        "real": real,
        "others": others,
        "provenance": provenance.provenance(trained.experiment.record, trained.experiment.seed),
    }
    files.save_json(workdir / "guidance_sweep.json", {**settings, **result})


def _figures(
    workdir: Path,
    rows: Sequence[Row],
    real: Mapping[str, float],
    scales: Sequence[float],
    features: str,
    title: str,
) -> None:
    """Write the curves, of the scores by the first features, and the strips."""

    def plain(row: Row) -> dict[str, Any]:
        return {key.removesuffix(f"/{features}"): value for key, value in row.items()}

    path = workdir / "guidance_sweep.png"
    sweeps.guidance_curves([plain(row) for row in rows], path, reference=plain(real), title=title)

    def tile(images: np.ndarray) -> np.ndarray:
        return pictures.mosaic(images, 2, scale=max(1, round(28 / images.shape[1])))

    pictures.strips(
        {(row["guide"], row["scale"]): tile(row["shown"]) for row in rows},
        workdir / "guidance_sweep_strips.png",
        columns={scale: f"scale {scale:g}" for scale in scales},
        title=f"The same {SHOWN} seeds at every scale",
    )
