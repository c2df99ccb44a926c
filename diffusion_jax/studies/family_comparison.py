"""Families of generative models compared at equal training time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, data, errors, files, npz, parsing, provenance, reading
from diffusion_jax.assembly import (
    autoencoders,
    components,
    conditions,
    datasets,
    denoiser,
    sampling,
    train,
    trainer,
    workdir,
)
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.assembly.train_latent import encoded
from diffusion_jax.errors import unknown
from diffusion_jax.evaluation import generate, judge, sharpness
from diffusion_jax.likelihood import flow
from diffusion_jax.report import curves, html, pictures, tables
from diffusion_jax.studies import claims, few_step_methods
from diffusion_jax.studies.claims import over_seeds, verdicts
from diffusion_jax.training import loop

SHOWN = 20  # images of a strip
TRIED = 12  # steps by which the speed of training is measured

DRAWN = (
    "laplacian",
    "high_frequency",
    "frechet",
    "precision",
    "recall",
    "accuracy",
    "milliseconds",
)


# ---- one family
def steps_for(config, dataset, seconds: float, root: Path) -> int:
    """How many training steps of this config so many seconds buy on this machine, compilation
    aside.
    """
    built = workdir.for_training(config, dataset, root)
    parts, k = trainer.training(built), config.training.steps_per_call
    state = parts.runner.init(parts.init, jax.random.key(config.seed))
    batch = data.batches(
        dataset.train, batch_size=config.data.batch_size, seed=config.seed, flip=config.data.flip
    )
    put, took = parts.runner.put_batch(loop.stack(batch, k)(0), axis=1), []
    for _ in range(2 + math.ceil(TRIED / k)):  # the first two compile, or warm up
        began = time.monotonic()
        state, numbers = parts.step(state, put)
        jax.block_until_ready(numbers)
        took.append(time.monotonic() - began)
    return max(k, round(seconds / sorted(took[2:])[len(took[2:]) // 2]) * k)


def with_budget(config, dataset, seconds: float, seed: int, steps: int, root: Path):
    """The config for this seed and so many steps (0: as many as the seconds buy), with a loss curve
    and one checkpoint.
    """
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    config.training.steps = steps or steps_for(config, dataset, seconds, root)
    config.training.update(
        eval_every=0,
        sample_every=0,
        checkpoint_every=config.training.steps,
        keep=1,
        log_every=max(1, config.training.steps // 20),
    )
    return config.lock()


def measured(
    trained, dataset, judged: Callable, count: int, images_of_likelihood: int, name: str
) -> tuple[dict, Any]:
    """(what a trained model scores, its first images)."""
    built = trained.experiment
    run = sampling.sample_with(built, trained.params, sampling.plan(built))
    batch = min(built.config.sampler.batch_size, count)
    keys, (labels, cond) = (
        generate.seeds_to_keys(range(count)),
        conditions.conditions(built, dataset, count),
    )
    run(keys[:batch], jax.tree.map(lambda c: c[:batch], cond))  # compiled before the clock starts
    began = time.monotonic()
    images = generate.generate(run, keys, cond, batch_size=batch, description=name)
    scores = {"milliseconds": 1000 * (time.monotonic() - began) / count}
    scores |= judged(images) if labels is None else judged(images, labels)
    scores |= sharpness.relative(images, data.arrays(dataset.test)["image"])
    scores["parameters"] = sum(
        x.size for x in jax.tree.leaves(denoiser.ensemble(built, trained.params))
    )
    if built.kind.reconstructs:
        found = autoencoders.held_out(built, trained.params, dataset.test)
        scores |= {
            key: found[key] for key in ("active_units", "units", "rate", "distortion", "iw_bound")
        }
        if built.objective.likelihood.is_discrete:
            scores["bits"] = -found["iw_bound"] / math.log(2) / math.prod(built.shape)
    elif images_of_likelihood and not built.latents:
        scores["bits"] = _bits(trained, dataset, images_of_likelihood)
    return scores, images[:SHOWN]


def _bits(trained, dataset, count: int) -> float:
    """Bits per dimension of the first test images by the probability flow, dequantised by the
    process.
    """
    built, examples = trained.experiment, data.arrays(dataset.test, count)
    images = jnp.asarray(data.transforms.to_float(examples["image"]))
    cond = conditions.cond_for(built, examples["label"] if built.num_classes else np.zeros(0, int))
    keys = arrays.example_keys(jax.random.key(0), len(images))

    @jax.jit
    def run(params, x, keys, cond):
        denoise = denoiser.denoiser(built, params, clip="none")
        return flow.bits_per_dim(built.process, denoise, x, keys, cond, dequantize="process").bits

    return float(run(trained.params, images, keys, cond).mean())


# ---- what is written
def write(
    rows: Sequence[Mapping],
    shown: Mapping[str, Any],
    floor: Mapping,
    titles: Mapping[str, str],
    stem: Path,
    record: Mapping,
) -> str:
    """stem.json, .md, .png and .html. Returns the text of stem.md.

    shown: name -> images, 'real' among them; titles: family -> what it is.
    """
    scored = over_seeds(rows)
    columns = {"family": "family"} | {
        key: claims.METRICS[key][0]
        for key in claims.METRICS
        if any(key in one for one in scored.values())
    }
    table = [
        {"family": name} | {key: _shown(key, *one[key]) for key in columns if key in one}
        for name, one in scored.items()
    ]
    table.append(
        {"family": "real test images"}
        | {key: _shown(key, floor[key]) for key in columns if key in floor}
    )
    told, seeds = verdicts(scored), len({row["seed"] for row in rows})
    title = f"Families of generative models on {record['data']}"
    stamp = record["provenance"]
    facts = (
        f"{record['seconds']:g} s of training each, {record['num']} images a model, compared with training images by "
        f"{record['features']}; ± is the standard deviation over "
        f"{seeds} seeds, where a family has more than one. {stamp['date'][:10]}, {stamp['cpu']['model']}."
    )
    headings = {"claim": "the textbook says", "verdict": "here", "measured": "measured"}
    text = f"# {title}\n\n{facts}\n\n{tables.markdown_table(told, headings)}\n{tables.markdown_table(table, columns)}"
    files.save_text(stem.with_suffix(".md"), text)
    files.save_json(
        stem.with_suffix(".json"),
        {"rows": list(rows), "verdicts": told, "real": dict(floor), **record},
    )
    curves.bars(
        scored,
        {key: claims.METRICS[key][:2] for key in DRAWN},
        stem.with_suffix(".png"),
        floor=floor,
        title=title,
    )
    scale = max(1, round(56 / shown["real"].shape[1]))
    strips = {(name, 0): pictures.mosaic(images, 1, scale=scale) for name, images in shown.items()}
    path = stem.with_name(f"{stem.name}_strips.png")
    pictures.strips(strips, path, columns={0: ""}, title="The first samples of every family")
    gallery = html.gallery(
        {key: (html.picture(tile), titles.get(key[0], "")) for key, tile in strips.items()},
        {name: name for name in shown},
        {0: ""},
    )
    html.save(
        stem.with_suffix(".html"),
        html.page(
            title,
            [
                (
                    "What the textbook says, and what was measured",
                    html.table(told, headings, wrong="measured"),
                ),
                ("Samples", gallery),
                ("In numbers", html.picture(stem.with_suffix(".png"), "bars")),
                ("All of them", html.table(table, columns)),
                ("The families", html.facts(titles)),
                (
                    "Where the numbers come from",
                    html.folded("everything on record", html.code(files.canonical_json(record))),
                ),
            ],
            lead=facts,
        ),
    )
    return text


def _shown(key: str, mean: float, std: float = 0.0) -> str:
    _, factor, digits = claims.METRICS[key]
    return f"{factor * mean:,.{digits}f}" + (f" ± {factor * std:.{digits}f}" if std else "")


# ---- the command
def compare(
    config, workdir: str, families: str = "", seeds: str = "", others: Sequence[str] = ()
) -> str:
    """Train, measure and write all that is missing. others: trained workdirs. Returns the text of
    families.md.
    """
    root, known = Path(workdir).absolute(), list(config.family)
    names = [part.strip() for part in families.split(";") if part.strip()] or list(config.families)
    for name in names:
        if name not in known:
            raise unknown("--families", name, known)
    seeds = parsing.integers("seeds", seeds, 0, 2**32 - 1) if seeds else list(config.seeds)
    configs = {name: config.family[name].copy_and_resolve_references().unlock() for name in names}
    for one in configs.values():
        components.check_components(one)
        one.data = config.data  # one data set for all, which --config.data.* changes
    dataset = datasets.dataset(configs[names[0]])
    models = {
        Path(root): folder.beside(root, "--others", dataset.image_shape) for root in others
    }  # or hours later it is refused
    labels = np.arange(config.num) % dataset.num_classes if dataset.num_classes else None
    judged = judge.against(
        dataset.train, labels, metrics=("accuracy", "frechet", "prdc"), count=config.num
    )
    held_out = data.arrays(dataset.test)["image"]
    floor = judge.on_real(dataset.train, dataset.test, judged, config.num) | sharpness.relative(
        held_out, held_out
    )
    rows, shown = [], {"real": held_out[:SHOWN]}
    # all families from one seed, then the next: what is there when it is stopped can be compared
    for seed in seeds:
        for name in (
            names if seed == seeds[0] else [name for name in names if name in config.repeated]
        ):
            row, images = _kept(
                root / f"{name}_{seed}", configs[name], dataset, judged, config, seed
            )
            rows.append({"family": name, "seed": seed} | row)
            shown.setdefault(name, images)
            _tell(f"{name}, seed {seed}", row)
    titles = {name: config.about[name] for name in names}
    for other, trained in models.items():
        titles[other.name], row, shown[other.name] = _beside(
            other, trained, dataset, judged, config.num
        )
        rows.append({"family": other.name, "seed": seeds[0]} | row)
        _tell(str(other), row)
    record = {
        "data": config.data.name,
        "num": config.num,
        "seconds": config.seconds,
        "features": judge.default_features(dataset.train),
        "provenance": provenance.provenance(config.to_dict(), seeds[0]),
    }
    return write(rows, shown, floor, titles, root / "families", record)


def _kept(root: Path, config, dataset, judged, settings, seed: int) -> tuple[dict, Any]:
    """The row and the first images of one run, made now or found in its folder."""
    file = root / "family.npz"
    if found := reading.kept(file, _recall):
        return found
    began = time.monotonic()
    path, config = (_latent if "latent" in config else _plain)(
        root, config, dataset, settings, seed
    )
    took = time.monotonic() - began
    likelihood = settings.likelihood if seed == settings.seeds[0] else 0
    row, images = measured(
        workdir.load(path, config), dataset, judged, settings.num, likelihood, root.name
    )
    row |= {"train_seconds": took, "steps": config.training.steps}
    files.save_json(root / "family.json", row)
    generate.save_npz(file, images)
    return row, images


def _recall(file: Path) -> tuple[dict, Any]:
    """The row and the images that `_kept` wrote, in family.json and family.npz. UserError for files
    that are damaged.
    """
    numbers = {
        key: reading.number(0) for key in ("train_seconds", "steps", "milliseconds", "parameters")
    }
    row = reading.json_file(
        file.with_suffix(".json"), reading.record(numbers, others=reading.number(finite=False))
    )
    return row, npz.load(file, {"images": npz.ArraySpec("u", (None, None, None, None))})["images"]


def _tell(name: str, row: Mapping) -> None:
    print(
        f"{name}: "
        + ", ".join(
            f"{claims.METRICS[key][0]} {_shown(key, row[key])}" for key in DRAWN if key in row
        ),
        file=sys.stderr,
    )


def _beside(root: Path, trained, dataset, judged, count: int) -> tuple[str, dict, Any]:
    """(what it is, its row, its first images) of a model that is there, by its own sampler."""
    row, images = measured(trained, dataset, judged, count, 0, root.name)
    config = trained.experiment.config
    title = f"{config.objective}, {config.sampler.name} in {config.sampler.nfe} evaluations"
    return (
        title,
        row | {"train_seconds": few_step_methods.seconds(root), "steps": config.training.steps},
        images,
    )


def _plain(
    root: Path, config, dataset, settings, seed: int, share: float = 1.0
) -> tuple[Path, Any]:
    """Train a config in the workdir `root` for its share of the seconds. Returns both, with the
    steps that it took.
    """
    budget = root / "budget.json"
    rule = reading.record({"steps": reading.integer(1, 10**9)})
    steps = (reading.kept(budget, lambda path: reading.json_file(path, rule)) or {"steps": 0})[
        "steps"
    ]
    config = with_budget(config, dataset, share * settings.seconds, seed, steps, root)
    root.mkdir(parents=True, exist_ok=True)
    files.save_json(budget, {"steps": config.training.steps, "seconds": share * settings.seconds})
    if not train.train(config, str(root), dataset=dataset):
        sys.exit(errors.UNFINISHED)
    return root, config


def _latent(root: Path, config, dataset, settings, seed: int) -> tuple[Path, Any]:
    """Half of the seconds for the autoencoder of settings.recipe, then as _plain on what it makes
    of the data.
    """
    recipe = settings.recipe.copy_and_resolve_references().unlock()
    recipe.data = settings.data
    _plain(root / "autoencoder", recipe, dataset, settings, seed, 0.5)
    config.data = config.data.copy_and_resolve_references()
    config.data.update(name="latents", path=str(encoded(root)))
    config.latent.autoencoder = str(root / "autoencoder")
    return _plain(root / "model", config, datasets.dataset(config), settings, seed, 0.5)
