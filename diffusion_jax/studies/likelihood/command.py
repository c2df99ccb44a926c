"""Likelihoods of a data set under a trained model, in bits per dimension."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import experiment, outputs, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import arrays, files, provenance
from diffusion_jax.core.types import Cond, Params
from diffusion_jax.data import Dataset, transforms
from diffusion_jax.data.padding import padded_batches
from diffusion_jax.evaluation import generate
from diffusion_jax.evaluation.samples import Rows
from diffusion_jax.pretrained import folders
from diffusion_jax.studies import blocks
from diffusion_jax.studies.likelihood.measures import (
    LikelihoodSettings,
    Measure,
    decided,
    measures,
    report,
    table,
)
from diffusion_jax.training import distributed, sharding


def likelihood(
    config: ConfigDict,
    *,
    workdir: str,
    num: int = 0,
    batch_size: int = 100,
    **settings: Unpack[LikelihoodSettings],
) -> None:
    """Measure the likelihood of images, print a table and write likelihood.md, .json and .npz.

    Args:
      config: the config of the run.
      workdir: the folder of the run, which the files are written to.
      num: number of images, from the first of the split; 0 takes all.
      batch_size: number of images at once; changes no value.
      **settings: what the values depend on (measures.LikelihoodSettings).

    Raises:
      UserError: for settings that do not fit, and for values that are not finite.
    """
    mesh, stem = sampling.sampling_mesh(config), folders.outputs(workdir) / "likelihood"
    outputs.need_writable(stem.with_suffix(".json"))
    trained = workdirs.load(workdir, config, mesh)
    experiment.need_pixels(trained.experiment)
    chosen = decided(settings, trained.experiment)
    measures(trained, chosen)  # refuses what does not exist before anything is printed
    about = {
        "settings": chosen,
        "step": trained.step,
        "weights": trained.weights,
        "config": trained.experiment.record,
        **trained.experiment.origins,
    }
    folder = stem.with_suffix(".parts") / provenance.config_hash(about)[:16]
    left_out = ", clipping and captions" if trained.experiment.encoder else " and clipping"
    print(
        f"{workdir}: step {trained.step}, weights {trained.weights}, solver {chosen['solver']}, "
        f"trace {chosen['trace']}; without guidance{left_out}",
        file=sys.stderr,
    )
    dataset = workdirs.dataset(config, workdir)
    values = run(trained, dataset, chosen, num or sys.maxsize, batch_size, folder, mesh)
    if not distributed.first():
        return
    rows = table(values, chosen)
    count = len(next(v for name, v in values.items() if name.endswith(".total")))
    title = (
        f"Bits per dimension of {count} {chosen['split']} images of "
        f"{trained.experiment.data.name} under {Path(workdir).name}, mean ± standard "
        "error over images"
    )
    stamp = provenance.provenance(trained.experiment.record, chosen["seed"])
    files.save_text(stem.with_suffix(".md"), f"# {title}\n\n{report(rows)}")
    generate.save_npz(stem.with_suffix(".npz"), None, **values)
    files.save_json(
        stem.with_suffix(".json"), {"rows": rows, "count": count, **about, "provenance": stamp}
    )
    blocks.discard(folder)  # the blocks of interrupted runs with other settings stay
    print(f"{report(rows)}\n{stem}.md, .json, and image by image .npz")


def run(
    trained: Trained,
    dataset: Dataset,
    settings: LikelihoodSettings,
    count: int,
    batch_size: int,
    folder: Path | None,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Measure the first `count` images of the split; finished batches are kept in a folder.

    Args:
      trained: the model.
      dataset: its data set.
      settings: resolved settings.
      count: number of images, at most.
      batch_size: number of images at once.
      folder: the folder of finished batches; None keeps them in memory.
      mesh: the devices that measure; None for one device.

    Returns:
      {row.name: (N, ...), row.seconds: () of all images}; {} on all processes but the first.
    """
    examples = _examples(trained, dataset, settings, count)
    count = len(examples["image"])
    size = min(batch_size, count)
    keys = arrays.example_keys(jax.random.key(settings["seed"]), count)
    measure = _measuring(trained, settings, mesh)

    def make(positions: np.ndarray, advance: Callable[[int], None]) -> Rows:
        (batch,) = padded_batches(len(positions), size)
        index = positions[batch.index]
        values = measure(keys[index], {name: each[index] for name, each in examples.items()})
        advance(batch.real)
        return {name: value[: batch.real] for name, value in values.items()}

    names = [f"{row}.total" for row in measures(trained, settings)]
    sizes = {"at_once": size, "size": size}
    kept = blocks.run(folder, count, make, names, description="likelihood", **sizes)
    if not distributed.first():
        return {}
    values = {name: kept.whole(name) for name in sorted(kept.names)}
    return {name: v.sum() if name.endswith(".seconds") else v for name, v in values.items()}


def _examples(
    trained: Trained, dataset: Dataset, settings: LikelihoodSettings, count: int
) -> dict[str, np.ndarray]:
    """The images in [-1, 1] and the entries of their condition, by name."""
    model, source = trained.experiment, getattr(dataset, settings["split"])
    if sample_conditions.has_arrays(model):
        index = np.arange(min(count, len(source)))
        batch, cond = sample_conditions.of_examples(model, source, index)
        cond = model.conditions.null(len(index)) if settings["unconditional"] else cond
        return {"image": batch["image"], **{name: np.asarray(x) for name, x in cond.items()}}
    examples = data.arrays(source, count)
    count = len(examples["image"])
    if not model.num_classes:
        labels = {}
    elif settings["unconditional"]:
        labels = {"label": np.full(count, model.num_classes, np.int32)}
    else:
        labels = {"label": examples["label"].astype(np.int32)}
    images = examples["image"]
    images = transforms.to_float(images) if model.is_image else images.astype(np.float32)
    return {"image": images, **labels}


def _measuring(
    trained: Trained, settings: LikelihoodSettings, mesh: Mesh | None
) -> Callable[[jax.Array, dict[str, np.ndarray]], Rows]:
    """Make the function (keys (B,), batch) -> {row.name: (B, ...)} that measures a batch.

    Every image of a batch takes an equal part of its seconds. On several devices those of the first
    batch include compilation.
    """
    several = mesh is not None and mesh.size > 1
    programs: dict[str, Any] = {
        row: _spread(measure, mesh) if several else jax.jit(measure)
        for row, measure in measures(trained, settings).items()
    }
    compiled: dict[str, Any] = dict(programs) if several else {}

    def measure(keys: jax.Array, batch: dict[str, np.ndarray]) -> Rows:
        cond = {name: each for name, each in batch.items() if name != "image"} or None
        args, rows = (trained.params, keys, batch["image"], cond), {}
        for row, program in programs.items():
            if row not in compiled:  # before the clock starts
                compiled[row] = program.lower(*args).compile()
            began = time.monotonic()
            values = {
                name: np.asarray(value, float)
                for name, value in compiled[row](*args).items()
                if name != "terms"
            }
            values["seconds"] = np.asarray((time.monotonic() - began) / len(keys))
            for name, value in values.items():
                rows[f"{row}.{name}"] = np.broadcast_to(value, (len(keys), *value.shape[1:]))
        return rows

    return measure


def _spread(measure: Measure, mesh: Mesh) -> Measure:
    """A measure whose images are spread over a mesh; every value is (B, ...), one for each."""

    @jax.jit
    def run(params: Params, keys: jax.Array, x: jax.Array, cond: Cond) -> dict[str, jax.Array]:
        values = {n: jnp.asarray(v) for n, v in measure(params, keys, x, cond).items()}
        shapes = {name: (len(x), *value.shape[1:]) for name, value in values.items()}
        return {n: jnp.broadcast_to(v, shapes[n]) for n, v in values.items() if n != "terms"}

    everywhere = sharding.spread(run, mesh)
    return lambda params, keys, x, cond: everywhere(params, (keys, x, cond))
