"""Methods for inverse problems compared on exact posteriors and on images."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, files, parsing, provenance, reading
from diffusion_jax.assembly import components, experiment, sampling, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import features
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.inverse import measurements
from diffusion_jax.inverse.methods import Method, restore
from diffusion_jax.pretrained import lpips, weights
from diffusion_jax.processes import schedules
from diffusion_jax.report import curves, pictures
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.samplers import base, grids
from diffusion_jax.studies import editing
from diffusion_jax.targets import laws, posterior

POINT_METHODS = "unguided;replacement;repaint(resample=5);dps(scale=0.1);dps(scale=0.3);ddnm;pigdm"
IMAGE_METHODS = "replacement;repaint(resample=5);dps(scale=0.5);ddnm;pigdm"
IMAGE_TASKS = "inpaint@half;inpaint@box;inpaint@random;superres(factor=2);superres(factor=4);deblur(std=0.05);colorize"
LEVEL = 0.9  # of the credible intervals
SHOWN = 10  # images of a strip
EXACT = "exact posterior"
TRUTH = "exact denoiser given y"

METRICS = {
    "bias": "bias of the mean (posterior stds)",
    "variance_ratio": "variance / posterior's",
    "interval_coverage": "coverage of 90 % intervals",
}

IMAGE_METRICS = {
    "psnr": ("PSNR (dB)", 2),
    "perceptual": ("perceptual distance", 4),
}  # heading, digits


class Kept(NamedTuple):
    """Rows of a JSON file about one thing, written after each."""

    path: Path
    about: dict
    rows: list[dict]


def kept_in(path: Path, about: dict) -> Kept:
    """What the file holds, if it is about the same; else a new beginning."""
    shown = {
        "shown": reading.nested(reading.integer(0, 255)),
        "draws": reading.nested(reading.number()),
    }
    words = dict.fromkeys(("task", "method"), reading.text(1)) | {
        "evaluations": reading.optional(reading.number(0))
    }
    row = reading.record({}, words | shown, others=reading.nested(reading.number(finite=False)))
    rule = reading.record({"about": reading.table(), "rows": reading.items(row)})
    about, found = (
        files.plain(about),
        reading.kept(path, lambda path: reading.json_file(path, rule)) or {},
    )
    if found and found["about"] != about:
        print(f"{path} was made with other settings, and is made anew", file=sys.stderr)
    return Kept(path, about, found["rows"] if found.get("about") == about else [])


def row_of(kept: Kept, key: dict, make: Callable[[], dict], place: str) -> dict:
    """The row of this key: the one that is there, or made and kept now."""
    found = next((row for row in kept.rows if key.items() <= row.items()), None)
    if found is None:
        began = time.monotonic()
        kept.rows.append(found := files.plain(key | make()))
        print(
            f"{place} {' '.join(map(str, key.values()))}: {time.monotonic() - began:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        stamp = provenance.provenance(kept.about)
        files.save_json(kept.path, {"about": kept.about, "rows": kept.rows, "provenance": stamp})
    return found


# ---- on a mixture, against the exact posterior
def matrix_for(dim: int):
    """What is measured: half as many random orthonormal directions as there are dimensions; in the
    plane (1, 1/2), on a line all.
    """
    if dim <= 2:
        return np.array([[1.0, 0.5]])[:, :dim]
    return np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0][: dim // 2]


def judged(draws, truth, mean, variance) -> dict[str, float]:
    """draws (N, S, D) of a method for N measurements of truth (N, D), against the posterior's mean
    and variance (N, D).

    bias: RMS of the draws' mean about the posterior's, in RMS posterior standard deviations (never
      below 1 / sqrt(S) or so);
    variance_ratio: total variance over the posterior's; coverage: how often a truth's coordinate is
      in the central 90 % of draws.
    """
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return {
        "bias": float(np.sqrt(np.mean((draws.mean(1) - mean) ** 2) / variance.mean())),
        "variance_ratio": float(draws.var(1, ddof=1).mean() / variance.mean()),
        "interval_coverage": float(np.mean((low <= truth) & (truth <= high))),
    }


def law_of(target: str):
    """The Mixture that a target is. UserError for one whose posterior is not known here."""
    found, path = build(components.TARGETS, target), schedules.EDM()
    if found.modes is not None:
        x = found.draw(jax.random.key(0), 5)
        own, modes = (
            found.log_density(path, x, path.t_min),
            laws.log_density_mixture(found.modes, path, x, path.t_min),
        )
        if np.allclose(own, modes, rtol=1e-4):
            return found.modes
    raise UserError(
        f"--target={target} is no mixture whose posterior is known; take gmm8 or 'gmm(modes=20,dim=8)'"
    )


def on_target(
    target: str,
    process: str,
    sampler: str,
    grid: str,
    methods: Sequence[str],
    budgets: Sequence[int],
    *,
    num: int,
    draws: int,
    std: float,
    kept: Kept,
) -> list[dict]:
    """A row {'method', 'nfe', 'evaluations', metrics, 'draws': of the first y} for the posterior
    and each method and budget.
    """
    law = jax.tree.map(jnp.asarray, law_of(target))
    path, solver = build(components.PROCESSES, process), build(components.SAMPLERS, sampler)
    dim, total = law.means.shape[1], num * draws
    matrix = matrix_for(dim)
    measurement = measurements.linear((dim,), matrix, std)
    truth = laws.draw_mixture(law, jax.random.key(1), num)
    y = measurements.measure(measurement, jax.random.key(2), truth)
    exact = posterior.posterior(law, jnp.asarray(matrix), std**2, y)
    mean, variance = map(np.asarray, posterior.posterior_moments(exact))
    repeated = jnp.repeat(y, draws, 0)
    keys = jax.random.split(jax.random.key(3), total)

    def row(points) -> dict:
        points = np.asarray(points, np.float64).reshape(num, draws, dim)
        return judged(points, np.asarray(truth), mean, variance) | {
            "draws": points[0].round(3).tolist()
        }

    def told(name: str):
        if name == TRUTH:
            return Method(
                lambda denoise, path, _, y: posterior.conditional(
                    law, path, jnp.asarray(matrix), std, y
                )
            )
        return build(components.METHODS, name)

    many = exact._replace(
        weights=jnp.repeat(exact.weights, draws, 0), means=jnp.repeat(exact.means, draws, 0)
    )
    rows = [
        row_of(kept, {"method": EXACT}, lambda: row(posterior.draw_posterior(many, keys)), "the")
    ]
    cells = [(name, nfe) for name in [TRUTH, *methods] for nfe in budgets]
    for name in [TRUTH, *methods]:
        method = told(name)
        wrapped = method.wrap(solver, measurement, repeated)
        lengths = {nfe: base.points(wrapped, nfe) for nfe in budgets}

        @jax.jit
        def run(keys, y, ts, method=method):
            x = base.start(path, keys, (len(keys), dim), y.dtype)
            denoise = laws.denoise_mixture(law, path)
            return restore(
                method, measurement, y, solver, denoise, path, keys, x, ts, padded=True
            ).x0

        for nfe in budgets:
            ts = sampling.pad(
                jnp.asarray(
                    build(components.GRIDS, grids.spec(grid, solver), path, lengths[nfe]), y.dtype
                ),
                max(lengths.values()),
            )
            key = {
                "method": name,
                "nfe": nfe,
                "evaluations": base.evaluations(wrapped, np.zeros(lengths[nfe])),
            }
            place = f"{cells.index((name, nfe)) + 1} of {len(cells)}:"
            rows.append(row_of(kept, key, lambda: row(run(keys, repeated, ts)), place))
    return rows


def target_report(rows: list[dict]) -> str:

    return markdown_table(rows, {"method": "method", "evaluations": "NFE"} | METRICS)


def target_pictures(rows: list[dict], stem: Path, title: str) -> None:
    """Curves over NFE, and where the draws of one measurement fell (in the plane: a tile for each
    method and budget).
    """
    exact, made = rows[0], [row | {"sampler": row["method"]} for row in rows[1:]]
    truth = {metric: exact[metric] for metric in METRICS}
    curves.quality_curves(
        made, stem.with_suffix(".png"), metrics=tuple(METRICS), floor=truth, title=title
    )
    if np.shape(exact["draws"])[1] < 2:  # the density is drawn in the plane
        return

    def tile(row):
        return pictures.density(np.asarray(row["draws"]), ((-1.6, -1.6), (1.6, 1.6)))

    budgets = sorted({row["nfe"] for row in made})
    tiles = {(row["method"], row["nfe"]): tile(row) for row in made}
    pictures.strips(
        tiles,
        stem.with_name(stem.name + "_draws.png"),
        columns={nfe: f"{nfe} NFE" for nfe in budgets},
        title="Draws of x0 given one y",
        above={EXACT: tile(exact)},
    )


# ---- on images, against what costs nothing
def baselines(name: str, measurement, y, shape: tuple[int, ...], mean_image) -> dict[str, Any]:
    """Trivial answers, float (N, H, W, C): unknown pixels filled with the mean of the known ones or
    with the mean image's; nearest and bicubic; for other tasks A^+ y, and y itself.
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


def parse_tasks(text: str, shape: tuple[int, ...]) -> dict[str, tuple[str, str]]:
    """'inpaint@half;deblur' -> {the text of each: (task, mask)}; of the default ones those that fit
    images of `shape`.
    """
    found = {
        name: (name.partition("@")[0], name.partition("@")[2])
        for name in map(str.strip, text.split(";"))
        if name
    }
    if text == IMAGE_TASKS:
        fits = {
            "colorize": shape[-1] > 1,
            "superres(factor=4)": not (shape[0] % 4 or shape[1] % 4) and shape[0] >= 16,
            "superres(factor=2)": shape[0] < 16,
        }
        found = {name: pair for name, pair in found.items() if fits.get(name, True)}
    return found


def perceptual_distance(name: str, dataset) -> Callable:
    """(images, truth), uint8 (N, H, W, C) -> (N,): LPIPS, or the mean square between features of
    the evaluation classifier.
    """
    if name == "lpips":
        run, params = jax.jit(lpips.distance), weights.load("lpips")
        return lambda images, truth: np.asarray(
            run(*map(data.transforms.normalise, (images, truth)), params)
        )
    train = data.arrays(dataset.train)
    seen = features.extractor(name, train["image"], train["label"])
    return lambda images, truth: np.square(seen.features(images) - seen.features(truth)).mean(1)


def on_images(
    job, dataset, tasks: dict, methods: Sequence[str], perceptual: str, kept: Kept
) -> tuple[list, Any]:
    """(a row {'task', 'method', 'psnr': [one of each image], 'perceptual': the same} for each, the
    first images).
    """
    built, config = job.trained.experiment, job.trained.experiment.config.sampler
    distance = perceptual_distance(
        perceptual or ("classifier" if dataset.num_classes else "lpips"), dataset
    )
    mean_image = transforms.to_float(data.arrays(dataset.train)["image"]).mean(0)
    truth = transforms.to_uint8(job.images)

    def row(images) -> dict:
        each = {"psnr": psnr(images, truth), "perceptual": distance(images, truth)}
        return {key: value.round(5).tolist() for key, value in each.items()} | {
            "shown": images[:SHOWN].tolist()
        }

    rows = []
    for place, (name, (task, mask)) in enumerate(tasks.items()):
        measurement = editing.measurement_for(task, mask, built.shape)
        y = jax.jit(lambda keys, x: measurements.measure(measurement, keys, x))(
            job.keys, job.images
        )
        trivial = baselines(task.partition("(")[0], measurement, y, built.shape, mean_image)
        picture = transforms.to_uint8(editing.shown(measurement, y[:SHOWN], built.shape))
        rows.append(
            row_of(kept, {"task": name, "method": "y"}, lambda: {"shown": picture}, "measured")
        )
        for method, images in trivial.items():
            rows.append(
                row_of(
                    kept,
                    {"task": name, "method": method},
                    lambda: row(transforms.to_uint8(images)),
                    "baseline",
                )
            )
        for spec in methods:
            method = editing.method_for(spec, measurement, task)
            wrapped = method.wrap(job.plan.sampler, measurement, None)
            plan = job.plan._replace(
                ts=sampling.grid(built, job.plan.grid, base.points(wrapped, config.nfe))
            )
            key = {
                "task": name,
                "method": spec,
                "evaluations": sampling.evaluations(plan._replace(sampler=wrapped)),
            }

            def make():
                return row(
                    editing.restored(
                        job._replace(plan=plan),
                        method,
                        measurement,
                        y,
                        job.keys,
                        description=f"{name} {spec}",
                    )
                )

            rows.append(row_of(kept, key, make, f"task {place + 1} of {len(tasks)}:"))
    return rows, truth[:SHOWN]


def image_report(rows: list[dict]) -> str:
    """A table: a line for each task and method, mean and standard error, the best mean of each task
    marked.
    """

    def cell(row, key, digits):
        means = [np.mean(r[key]) for r in rows if r["task"] == row["task"] and key in r]
        mean, error = np.mean(row[key]), np.std(row[key], ddof=1) / np.sqrt(len(row[key]))
        best = "**" if mean == (max if key == "psnr" else min)(means) else ""
        return f"{best}{mean:.{digits}f}{best} ± {error:.{digits}f}"

    shown = [
        row | {key: cell(row, key, digits) for key, (_, digits) in IMAGE_METRICS.items()}
        for row in rows
        if "psnr" in row
    ]
    headings = {key: heading for key, (heading, _) in IMAGE_METRICS.items()}
    return markdown_table(
        shown, {"task": "task", "method": "method", "evaluations": "NFE"} | headings
    )


def image_picture(rows: list[dict], truth, path: Path) -> None:
    """For each task a block of rows: the measurement, every baseline and method, the truth."""
    images, names = [], []
    for row in rows:
        if row["method"] == "y" and images:
            images.append(truth), names.append("truth")
        images.append(np.asarray(row["shown"], np.uint8))
        names.append(row["task"] if row["method"] == "y" else row["method"])
    images.append(truth), names.append("truth")
    pictures.save(pictures.image_grid(np.concatenate(images), len(truth), row_labels=names), path)


def target_command(FLAGS, config) -> tuple[str, Path]:

    budgets = sorted(set(parsing.integers("nfe", FLAGS.nfe or "20,50,100", 2, 10_000)))
    if not budgets or budgets[0] < 2 or FLAGS.std < 0:
        raise UserError(
            f"--nfe={FLAGS.nfe} --std={FLAGS.std}: budgets of 2 or more, and noise of 0 or more"
        )
    methods = [part.strip() for part in (FLAGS.methods or POINT_METHODS).split(";") if part.strip()]
    for method in methods:  # mistakes are reported before anything takes long
        if method != TRUTH:
            build(components.METHODS, method)
    about = {
        "target": FLAGS.target,
        "process": FLAGS.process,
        "sampler": FLAGS.sampler,
        "grid": FLAGS.grid,
        "std": FLAGS.std,
        "num": FLAGS.num,
        "draws": FLAGS.draws,
    }
    stem = (
        parsing.folder(
            "out", FLAGS.out or "runs/inverse_" + re.sub(r"\W+", "_", FLAGS.target).strip("_")
        )
        / "inverse_benchmark"
    )
    with jax.enable_x64(True):
        kept, setting = (
            kept_in(stem.with_suffix(".json"), about),
            (FLAGS.target, FLAGS.process, FLAGS.sampler, FLAGS.grid),
        )
        rows = on_target(
            *setting, methods, budgets, num=FLAGS.num, draws=FLAGS.draws, std=FLAGS.std, kept=kept
        )
    title = f"{FLAGS.target}, {FLAGS.process}, noise {FLAGS.std:g}: {FLAGS.num} y, {FLAGS.draws} draws each, {FLAGS.sampler}"
    target_pictures(rows, stem, title)
    return f"# {title}\n\n{target_report(rows)}", stem


def image_command(FLAGS, config) -> tuple[str, Path]:

    trained = workdir.load(FLAGS.workdir, config)
    experiment.need_images(trained.experiment)
    experiment.need_pixels(trained.experiment)
    if FLAGS.nfe:
        (config.sampler.nfe,) = parsing.integers("nfe", FLAGS.nfe, 1, 10_000)[:1]
    shape = trained.experiment.shape
    methods = [part.strip() for part in (FLAGS.methods or IMAGE_METHODS).split(";") if part.strip()]
    tasks = parse_tasks(FLAGS.tasks, shape)
    for task, mask in tasks.values():  # mistakes are reported before anything takes long
        for method in methods:
            editing.method_for(method, editing.measurement_for(task, mask, shape), task)
    dataset = workdir.dataset(config, FLAGS.workdir)
    index = np.unique(
        np.linspace(0, len(dataset.test) - 1, FLAGS.num).round().astype(int)
    )  # sets are often sorted
    job = editing.job_for(trained, dataset, index, FLAGS.labels, [], range(len(index)))
    stem = parsing.folder("out", FLAGS.out or FLAGS.workdir) / "inverse_benchmark"
    about = {
        "config": config.to_dict(),
        "step": trained.step,
        "weights": trained.weights,
        "num": FLAGS.num,
        "labels": FLAGS.labels,
        "perceptual": FLAGS.perceptual,
    }
    kept = kept_in(stem.with_suffix(".json"), about)
    rows, truth = on_images(job, dataset, tasks, methods, FLAGS.perceptual, kept)
    image_picture(rows, truth, stem.with_suffix(".png"))
    name = Path(FLAGS.workdir).name
    return (
        f"# {name}: {len(job.images)} held-out images, {config.sampler.name}\n\n{image_report(rows)}",
        stem,
    )
