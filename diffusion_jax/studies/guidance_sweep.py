"""Evaluation at several scales of guidance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import files, npz, parsing, provenance, reading
from diffusion_jax.assembly import conditions, denoiser, experiment, sampling
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.denoisers import guidance
from diffusion_jax.evaluation import generate, judge
from diffusion_jax.evaluation import metrics as metric_table
from diffusion_jax.processes import schedules
from diffusion_jax.progress import progress
from diffusion_jax.report import curves, pictures
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.samplers import base, grids, ode
from diffusion_jax.targets import laws
from diffusion_jax.training import sharding

SHOWN = 10  # images of a strip

PREFERRED = (
    "accuracy",
    "precision",
    "frechet",
    "recall",
    "coverage",
)  # of the scores, in the table

GUIDES = "cfg(); cfg(rescale=0.7); interval(low=0.2, high=3.0)"


def scales_of(text: str) -> list[float]:
    """'0,1,2' -> [0.0, 1.0, 2.0]. UserError for anything else."""
    return sorted(set(parsing.numbers("scales", text, 0, 1000)))


def sweep(
    trained_by: Mapping[str, object],
    scales: Sequence[float],
    judged: Callable,
    cond,
    count: int,
    batch_size: int,
    mesh,
    folder: Path,
    told: Mapping,
) -> list[dict]:
    """A row {'guide', 'scale', 'shown' (SHOWN images), score: value} for each cell, which is kept
    in `folder`.

    trained_by: guide -> workdir.Trained with it. cond: of the `count` images, which like their
      seeds are those of every cell.
    """

    def place(guide, scale):
        words = files.canonical_json({**told, "guide": guide, "scale": scale})
        return folder / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.npz"

    cells = [(guide, scale, place(guide, scale)) for guide in trained_by for scale in scales]
    missing = [cell for cell in cells if reading.kept(cell[2], _cell) is None]
    with progress(len(missing) * count, "guidance sweep", enabled=bool(missing)) as advance:
        runs = {guide: _sampler(trained, mesh) for guide, trained in trained_by.items()}
        for guide, scale, path in missing:
            images = _draw(runs[guide], scale, cond, count, batch_size, advance)
            generate.save_npz(path, images[:SHOWN], scores=json.dumps(judged(images)))
    return [{"guide": guide, "scale": scale} | _cell(path) for guide, scale, path in cells]


def _cell(path: Path) -> dict:
    """{'shown': images, score: value} of a finished cell. UserError for a file that is damaged."""
    found = npz.load(
        path,
        {"images": npz.ArraySpec("u", (None, None, None, None)), "scores": npz.ArraySpec("U", ())},
    )
    scores = reading.json_text(
        str(found["scores"]), f"the scores in '{path}'", reading.table(reading.number(finite=False))
    )
    return {"shown": found["images"]} | scores


def _sampler(trained, mesh) -> Callable:
    """(keys, cond, scale) -> images, one program for all scales, which at the neutral one gives the
    model itself.
    """
    built, chosen = trained.experiment, sampling.plan(trained.experiment)
    run = sampling.sample_fn(
        built, chosen.sampler, guided=True, clip=chosen.clip, noise=chosen.noise
    )
    everywhere, params = sharding.spread(run, mesh), denoiser.ensemble(built, trained.params)
    return lambda keys, cond, scale: everywhere(
        params, (keys, cond), np.asarray(chosen.ts), np.float32(scale)
    )


def _draw(run: Callable, scale: float, cond, count: int, batch_size: int, advance: Callable):
    """uint8 images of the seeds 0 to count - 1 and their conditions."""
    left = count

    def draw(keys, cond):
        nonlocal left
        images = run(keys, cond, scale)
        advance(min(left, len(keys)))
        left -= len(keys)
        return images

    keys = generate.seeds_to_keys(range(count))
    return generate.generate(draw, keys, cond, batch_size=min(batch_size, count), progress=False)


def report(rows: Sequence[Mapping], real: Mapping) -> str:
    """The table in markdown: every guide at every scale, and real test images as the yardstick."""
    metrics = [key for key in PREFERRED if key in rows[0]] + [
        key for key in rows[0] if key.partition("/")[1]
    ]

    def percent(key, value):
        return f"{100 * value:.1f} %" if key.partition("/")[0] == "accuracy" else f"{value:.3f}"

    every = [*rows, {"guide": "real test images, as many", "scale": None} | dict(real)]
    shown = [
        {"guide": row["guide"], "scale": None if row["scale"] is None else f"{row['scale']:g}"}
        | {key: percent(key, row[key]) for key in metrics if key in row}
        for row in every
    ]
    return markdown_table(
        shown,
        {"guide": "guide", "scale": "scale"}
        | {key: metric_table.find(key, "pixels").title for key in metrics},
    )


def on_model(
    config, workdir: Path, guides: Sequence[str], scales: Sequence[float], count: int, features: str
) -> str:
    """Sweep a trained model and write everything. Returns the text of guidance_sweep.md."""
    mesh = sampling.sampling_mesh(config)
    trained = folder.load(workdir, config, mesh)
    experiment.need_images(trained.experiment)
    trained_by = {
        guide: folder.with_guide(trained, guide, workdir, mesh) for guide in guides
    }  # mistakes are reported at once
    for guide, one in trained_by.items():
        for scale in scales:
            denoiser.is_guided(one.experiment, scale, key=f"--guides='{guide}' at scale")
    dataset = folder.images(config, workdir)
    labels, cond = conditions.conditions(trained.experiment, dataset, count)
    chosen = parsing.names(features) or [judge.default_features(dataset.train)]
    judged = judge.against(
        dataset.train, labels, features=chosen, metrics=("accuracy", "frechet", "prdc"), count=count
    )
    real = judge.on_real(
        dataset.train, dataset.test, judged, count
    )  # as many as in a cell: recall depends on how many there are
    sampler = {
        key: value
        for key, value in config.sampler.items()
        if key not in ("guide", "guidance", "batch_size")
    }
    told = {
        "num": count,
        "features": ",".join(chosen),
        "step": trained.step,
        "weights": trained.weights,
        "config": config.to_dict() | {"sampler": sampler},
    }
    rows = sweep(
        trained_by,
        scales,
        judged,
        cond,
        count,
        config.sampler.batch_size,
        mesh,
        workdir / "guidance_sweep",
        told,
    )
    others = {
        guide: [found.config.to_dict() for found, _ in one.experiment.others]
        for guide, one in trained_by.items()
    }
    files.save_json(
        workdir / "guidance_sweep.json",
        told
        | {
            "rows": [{key: value for key, value in row.items() if key != "shown"} for row in rows],
            "real": real,
            "others": others,
            "provenance": provenance.provenance(config.to_dict(), config.seed),
        },
    )
    title = (
        f"Guidance on {workdir.name}, step {trained.step}: {count} images a cell, {config.sampler.name}, "
        f"{sampling.evaluations(sampling.plan(trained.experiment))} evaluations"
    )

    def plain(row):
        return {key.removesuffix(f"/{chosen[0]}"): value for key, value in row.items()}

    curves.guidance_curves(
        [plain(row) for row in rows], workdir / "guidance_sweep.png", floor=plain(real), title=title
    )
    tiles = {
        (row["guide"], row["scale"]): pictures.mosaic(
            row["shown"], 2, scale=max(1, round(28 / row["shown"].shape[1]))
        )
        for row in rows
    }
    pictures.strips(
        tiles,
        workdir / "guidance_sweep_strips.png",
        columns={scale: f"scale {scale:g}" for scale in scales},
        title=f"The same {SHOWN} seeds at every scale",
    )
    text = f"# {title}\n\n{report(rows, real)}"
    files.save_text(workdir / "guidance_sweep.md", text)
    return text


def on_mixture(scales: Sequence[float], path: Path, count: int = 10_000) -> None:
    """The picture of what guidance does to a law whose denoisers are exact: one class of three that
    overlap in the plane.
    """
    angle = 2 * np.pi * np.arange(6) / 6
    law = laws.mixture(np.ones(6), np.stack([np.cos(angle), np.sin(angle)], 1), 0.28)
    labels, process, key = (
        np.array([0, 0, 1, 1, 2, 2]),
        schedules.EDM(sigma_max=20.0),
        jax.random.key(0),
    )
    denoise = laws.denoise_mixture(law, process, labels)
    worse = laws.denoise_mixture(
        law._replace(variances=4 * law.variances), process, labels
    )  # as if less trained

    def cfg(scale):
        return guidance.cfg(
            denoise, scale, lambda cond: {"label": jnp.full_like(cond["label"], -1)}
        )

    guided = {
        "cfg": cfg,
        "cfg, σ / α in (0.2, 1]": lambda scale: guidance.interval(
            cfg(scale), denoise, process, 0.2, 1.0
        ),
        "autoguidance": lambda scale: guidance.autoguidance(denoise, worse, scale),
    }
    ts, cond, t = (
        grids.karras(process, 32),
        {"label": jnp.zeros(count, jnp.int32)},
        jnp.float32(process.t_min),
    )
    own = laws.draw_mixture(laws.Mixture(*(part[:2] for part in law)), key, count)
    tiles, captions, spread = {}, {}, lambda x: np.sqrt(np.var(np.asarray(x), 0).sum())
    for name, make in guided.items():

        @jax.jit
        def draw(scale):
            x = base.sample(
                ode.edm_heun(),
                make(scale),
                process,
                key,
                base.start(process, key, (count, 2)),
                ts,
                cond,
            ).x0
            joint = laws.log_density_mixture(law, process, x, t, labels, cond)
            return x, jnp.mean(jnp.exp(joint - laws.log_density_mixture(law, process, x, t)))

        for scale in scales:
            x, sure = draw(scale)
            tiles[name, scale] = pictures.density(np.asarray(x), ((-2, -2), (2, 2)), side=170)
            captions[name, scale] = (
                f"p(class | x) {100 * sure:.0f} %\nspread {spread(x) / spread(own):.2f} of the class's"
            )
    pictures.strips(
        tiles,
        path,
        captions=captions,
        columns={scale: f"scale {scale:g}" for scale in scales},
        title="One class of three, by exact denoisers",
    )
