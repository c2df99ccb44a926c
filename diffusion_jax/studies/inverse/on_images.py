"""Methods for inverse problems on held-out samples, against trivial baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import experiment, outputs
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.core import files, parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.data import Dataset, transforms
from diffusion_jax.evaluation import features, metrics
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.inverse import measurements
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.pretrained import folders, lpips, weights
from diffusion_jax.report import media, pictures
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies import store
from diffusion_jax.studies.edits import restoration
from diffusion_jax.studies.edits.job import Job, job_for
from diffusion_jax.studies.edits.requests import measurement_for, method_for, of_table
from diffusion_jax.studies.inverse import on_arrays
from diffusion_jax.studies.inverse.table import Problem, open_rows, solved, timed_row

METHODS = "replacement;repaint(resample=5);dps(scale=0.5);ddnm;pigdm"
TASKS = (
    "inpaint@half;inpaint@box;inpaint@random;superres(factor=2);superres(factor=4);"
    "deblur(std=0.05);colorize"
)
METRICS = ("psnr", "perceptual")  # of evaluation/metrics.py, of images
OF_ARRAYS = ("psnr", "rmse")  # and of arrays
SHOWN = 10  # images of a strip

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (images, truth) uint8 -> (N,)


def compare_on_images(
    config: ConfigDict,
    *,
    workdir: str | None = None,
    methods: str = "",
    tasks: str = "",
    nfe: str = "",
    labels: str = "",
    perceptual: str = "",
    num: int = 64,
    out: str = "",
) -> None:
    """Restore held-out samples by several methods; write a table, rows and strips.

    Args:
      config: the config of the run, with the sampling settings.
      workdir: the folder of the run.
      methods: methods separated by ';'; '' takes METHODS.
      tasks: tasks separated by ';', each with its mask after '@'; '' takes those of TASKS that fit.
      nfe: network evaluations; '' takes config.sampler.nfe.
      labels: the condition: '' is none, 'own' is the true class or caption, else classes in turn.
      perceptual: 'classifier', 'lpips', or '' for the classifier where there are labels.
      num: number of images.
      out: the folder to write to; '' takes the workdir.

    Raises:
      UserError: for unknown names, and for methods that do not fit a task.
    """
    if nfe:
        config.sampler.nfe = parsing.integers("nfe", nfe, 1, 10_000)[0]
    trained = workdirs.load(workdir, config)
    normalization = trained.experiment.normalization
    chosen = parsing.specs(methods or METHODS)
    wanted = _tasks(trained.experiment, tasks, chosen, perceptual)
    dataset = workdirs.dataset(config, workdir)
    # spread over the split, which may be sorted by class
    index = np.unique(np.linspace(0, len(dataset.test) - 1, num).round().astype(int))
    job = job_for(trained, dataset, index, labels, [], range(len(index)))
    root = outputs.folder("out", out or folders.outputs(workdir), "inverse_benchmark.json")
    stem = root / "inverse_benchmark"
    about = {
        "config": trained.experiment.record,
        "step": trained.step,
        "weights": trained.weights,
        **trained.experiment.origins,
    }
    about |= {"num": num, "labels": labels, "perceptual": perceptual}
    table = open_rows(stem.with_suffix(".json"), about)
    if normalization:
        rows, truth = on_arrays.make_rows(job, dataset, wanted, chosen, table)
    else:
        rows, truth = make_rows(job, dataset, wanted, chosen, perceptual, table)
    draw_strips(rows, truth, stem.with_suffix(".png"))
    plural = media.media_of(trained.experiment.shape, normalization).plural
    sampler, count = trained.experiment.sampling.name, len(job.images)
    title = f"{Path(workdir).name}: {count} held-out {plural}, {sampler}"
    text = f"# {title}\n\n{report(rows, OF_ARRAYS if normalization else METRICS)}"
    files.save_text(stem.with_suffix(".md"), text)
    print(f"{text}\n{stem}.json, .md, .png")


def _tasks(
    model: Experiment, tasks: str, methods: Sequence[str], perceptual: str
) -> dict[str, tuple[str, str]]:
    """The tasks, after mistakes that are reported before anything takes long."""
    experiment.need_judged(model)
    experiment.need_pixels(model)
    known, shape = model.normalization, model.shape
    if perceptual and known:
        raise UserError(f"--perceptual={perceptual} is for images, and this model draws arrays")
    wanted = parse_tasks(tasks or TASKS, shape, arrays=bool(known))
    for task, mask in wanted.values():
        for method in methods:
            method_for(method, measurement_for(task, mask, shape, of_table(known)), task)
    return wanted


def baselines(
    name: str, measurement: Measurement, y: Array, shape: tuple[int, ...], mean_image: np.ndarray
) -> dict[str, Array]:
    """Restorations without a model.

    Args:
      name: the name of the task.
      measurement: the measurement.
      y: (N, ...) what was measured.
      shape: (H, W, C) of the images.
      mean_image: (H, W, C) the mean of the training images.

    Returns:
      {name: (N, H, W, C)}: for inpaint unknown pixels filled with the mean of the known ones, or
      with the mean image's; for superres nearest and bicubic; for others A^+ y, and y itself.
    """
    least = measurements.pinv(measurement, y)
    if name == "inpaint":
        known = jnp.broadcast_to(measurement.forward(jnp.ones((1, *shape))), least.shape)
        own = (least * known).sum((1, 2), keepdims=True) / known.sum((1, 2), keepdims=True)
        return {
            "mean of known pixels": least + (1 - known) * own,
            "mean image": least + (1 - known) * mean_image,
        }
    if name == "superres":
        return {"nearest": least, "bicubic": jax.image.resize(y, least.shape, "cubic")}
    return {"pseudo-inverse": least} | ({"measurement itself": y} if y.shape == least.shape else {})


def parse_tasks(
    text: str, shape: tuple[int, ...], *, arrays: bool = False
) -> dict[str, tuple[str, str]]:
    """The tasks that --tasks names.

    Args:
      text: such as 'inpaint@half;deblur'; of the default TASKS only those that fit the samples.
      shape: (N_1, ..., N_d, C) of the samples.
      arrays: whether they are arrays of numbers instead of images.

    Returns:
      {the text of a task: (task, mask)}.
    """
    found = {name: (name.partition("@")[0], name.partition("@")[2]) for name in parsing.specs(text)}
    if text == TASKS:
        extents = shape[:-1]
        fits = {
            "colorize": shape[-1] > 1 and not arrays,
            "superres(factor=4)": extents and not any(n % 4 for n in extents) and shape[0] >= 16,
            "superres(factor=2)": extents and not any(n % 2 for n in extents) and shape[0] < 16,
            "deblur(std=0.05)": bool(extents),
            "inpaint@box": bool(extents),  # columns of vectors have no middle
        }
        found = {name: pair for name, pair in found.items() if fits.get(name, True)}
    return found


def _perceptual_distance(name: str, dataset: Dataset) -> Distance:
    """A perceptual distance of images from their truth.

    Args:
      name: 'lpips', or an extractor whose features' mean squared distance is taken.
      dataset: the data set, which the classifier is trained on.
    """
    if name == "lpips":
        run, params = jax.jit(lpips.distance), weights.load("lpips")

        def distance(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
            pair = map(transforms.to_float, (images, truth))
            return np.asarray(run(*pair, params))

        return distance
    train = data.arrays(dataset.train)
    extractor = features.extractor(name, train["image"], train["label"])
    return lambda images, truth: np.square(
        extractor.features(images) - extractor.features(truth)
    ).mean(1)


def make_rows(
    job: Job,
    dataset: Dataset,
    tasks: dict[str, tuple[str, str]],
    methods: Sequence[str],
    perceptual: str,
    table: store.Table,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Make rows for the measurement, the baselines and the methods of every task.

    Args:
      job: the images and the model.
      dataset: its data set.
      tasks: {name: (task, mask)}.
      methods: the methods.
      perceptual: as in `compare_on_images`.
      table: keeps the rows.

    Returns:
      Rows {'task', 'method', 'evaluations', 'psnr' and 'perceptual' of each image, 'shown': the
      first images}, and the first true images (SHOWN, H, W, C) uint8.
    """
    distance = _perceptual_distance(
        perceptual or ("classifier" if dataset.num_classes else "lpips"), dataset
    )
    mean_image = transforms.to_float(data.arrays(dataset.train)["image"]).mean(0)
    truth = transforms.to_uint8(job.images)

    def row(images: np.ndarray) -> dict[str, Any]:
        each = {"psnr": psnr(images, truth), "perceptual": distance(images, truth)}
        scores = {key: value.round(5).tolist() for key, value in each.items()}
        return scores | {"shown": images[:SHOWN].tolist()}

    rows = []
    for place, (name, (task, mask)) in enumerate(tasks.items()):
        measurement = measurement_for(task, mask, job.trained.experiment.shape)
        y = restoration.measure(job, measurement)
        rows += _without_model(name, task, measurement, y, mean_image, row, table)
        for spec in methods:
            problem = Problem(name, measurement, method_for(spec, measurement, task), y)
            place_of = f"task {place + 1} of {len(tasks)}:"
            rows.append(solved(job, spec, problem, row, table, place_of))
    return rows, truth[:SHOWN]


def _without_model(
    name: str,
    task: str,
    measurement: Measurement,
    y: Array,
    mean_image: np.ndarray,
    row: Callable[[np.ndarray], dict[str, Any]],
    table: store.Table,
) -> list[dict[str, Any]]:
    """The rows of a task that need no model: the measurement itself ('y') and the baselines."""
    shape = mean_image.shape
    picture = transforms.to_uint8(restoration.as_image(measurement, y[:SHOWN], shape))
    rows = [timed_row(table, {"task": name, "method": "y"}, lambda: {"shown": picture}, "measured")]
    trivial = baselines(task.partition("(")[0], measurement, y, shape, mean_image)
    for method, images in trivial.items():

        def make(images: Array = images) -> dict[str, Any]:
            return row(transforms.to_uint8(images))

        rows.append(timed_row(table, {"task": name, "method": method}, make, "baseline"))
    return rows


def report(rows: list[dict[str, Any]], names: Sequence[str] = METRICS) -> str:
    """Write a Markdown table with standard errors; the best mean of each task is in bold.

    Args:
      rows: a row for each task and method: 'task', 'method', 'evaluations' (of the network), and
        for each metric the scores of all images. A row without scores is left out.
      names: of the metrics.
    """

    def cell(row: dict[str, Any], metric: metrics.Metric) -> str:
        key = metric.name
        means = [np.mean(r[key]) for r in rows if r["task"] == row["task"] and key in r]
        mean, error = np.mean(row[key]), np.std(row[key], ddof=1) / np.sqrt(len(row[key]))
        best = "**" if metric.loss(mean) == min(map(metric.loss, means)) else ""
        return f"{best}{metric.number(mean)}{best} ± {metric.number(error)}"

    table = [metrics.find(name) for name in names]
    shown = [
        row | {metric.name: cell(row, metric) for metric in table} for row in rows if "psnr" in row
    ]
    columns = {"task": "task", "method": "method", "evaluations": "NFE"}
    return markdown_table(shown, columns | {metric.name: metric.label for metric in table})


def draw_strips(rows: list[dict[str, Any]], truth: np.ndarray, path: Path) -> None:
    """Draw for each task the measurement, every baseline and method, and the truth.

    Args:
      rows: the rows, those of a task together.
      truth: (SHOWN, H, W, C) uint8.
      path: the picture to write.
    """
    strips: list[tuple[str, np.ndarray]] = []
    for row in rows:
        if row["method"] == "y" and strips:
            strips.append(("truth", truth))
        name = row["task"] if row["method"] == "y" else row["method"]
        strips.append((name, np.asarray(row["shown"], np.uint8)))
    strips.append(("truth", truth))
    names, images = zip(*strips, strict=True)
    grid = pictures.image_grid(np.concatenate(images), len(truth), row_labels=list(names))
    pictures.save(grid, path)
