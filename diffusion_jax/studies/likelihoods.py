"""Likelihoods of a data set under a trained model, in bits per dimension."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import experiment, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import arrays, files, npz, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Cond, Params
from diffusion_jax.data import Dataset, transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import folders
from diffusion_jax.studies import store
from diffusion_jax.studies.likelihood_measures import (
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
      **settings: what the values depend on (likelihood_measures.LikelihoodSettings).

    Raises:
      UserError: for settings that do not fit, and for values that are not finite.
    """
    mesh, stem = sampling.sampling_mesh(config), folders.outputs(workdir) / "likelihood"
    trained = workdirs.load(workdir, config, mesh)
    experiment.need_pixels(trained.experiment)
    chosen = decided(settings, trained.experiment)
    measures(trained, chosen)  # refuses what does not exist before anything is printed
    about = {
        "settings": chosen,
        "step": trained.step,
        "weights": trained.weights,
        "config": trained.experiment.record,
    }
    parts = stem.with_suffix(".parts") / provenance.config_hash(about)[:16]
    left_out = ", clipping and captions" if trained.experiment.encoder else " and clipping"
    print(
        f"{workdir}: step {trained.step}, weights {trained.weights}, solver {chosen['solver']}, "
        f"trace {chosen['trace']}; without guidance{left_out}",
        file=sys.stderr,
    )
    dataset = workdirs.dataset(config, workdir)
    values = run(trained, dataset, chosen, num or sys.maxsize, batch_size, parts, mesh)
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
    shutil.rmtree(parts)  # the parts of interrupted runs with other settings stay
    if not any(parts.parent.iterdir()):
        parts.parent.rmdir()
    print(f"{report(rows)}\n{stem}.md, .json, and image by image .npz")


def run(
    trained: Trained,
    dataset: Dataset,
    settings: LikelihoodSettings,
    count: int,
    batch_size: int,
    parts: Path,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Measure the first `count` images of the split; finished batches stay in `parts`.

    Args:
      trained: the model.
      dataset: its data set.
      settings: resolved settings.
      count: number of images, at most.
      batch_size: number of images at once.
      parts: the folder of finished batches.
      mesh: the devices that measure; None for one device.

    Returns:
      {row.name: (N, ...)} and {row.seconds: ()}; {} on all processes but the first.
    """
    batch = _examples(trained, dataset, settings, count)
    count = len(batch["index"])
    rows = list(measures(trained, settings))
    before = measured_before(parts, rows) if distributed.first() else []
    measured = {*distributed.from_first([int(i) for part in before for i in part["index"]])}
    left = np.array([i for i in range(count) if i not in measured], int)
    if len(left):
        if measured:
            print(f"{count - len(left)} images were measured before: resuming", file=sys.stderr)
        keys = arrays.example_keys(jax.random.key(settings["seed"]), count)
        generate.generate(
            _measuring(trained, settings, parts, mesh),
            keys[left],
            {name: values[left] for name, values in batch.items()},
            batch_size=min(batch_size, count),
            finish=np.asarray,
            description="likelihood",
        )
    return gather(measured_before(parts, rows), count) if distributed.first() else {}


def _examples(
    trained: Trained, dataset: Dataset, settings: LikelihoodSettings, count: int
) -> dict[str, np.ndarray]:
    """The images in [-1, 1], their labels and their numbers in the split."""
    model = trained.experiment
    examples = data.arrays(getattr(dataset, settings["split"]), count)
    count = len(examples["image"])
    labels = (
        examples["label"]
        if model.num_classes and not settings["unconditional"]
        else np.full(count, model.num_classes)
    )
    images = examples["image"]
    images = transforms.to_float(images) if model.is_image else images.astype(np.float32)
    return {"image": images, "label": labels.astype(np.int32), "index": np.arange(count)}


def _measuring(
    trained: Trained, settings: LikelihoodSettings, parts: Path, mesh: Mesh | None
) -> Callable[[jax.Array, dict[str, np.ndarray]], np.ndarray]:
    """Make the function (keys, batch) -> indices that measures a batch and writes its values.

    On several devices the seconds of the first batch include compilation.
    """
    several = mesh is not None and mesh.size > 1
    programs: dict[str, Any] = {
        row: _spread(measure, mesh) if several else jax.jit(measure)
        for row, measure in measures(trained, settings).items()
    }
    compiled: dict[str, Any] = dict(programs) if several else {}

    def measure(keys: jax.Array, batch: dict[str, np.ndarray]) -> np.ndarray:
        cond = {"label": batch["label"]} if trained.experiment.num_classes else None
        args = (trained.params, keys, batch["image"], cond)
        part = {"index": batch["index"]}
        for row, program in programs.items():
            if row not in compiled:  # before the clock starts
                compiled[row] = program.lower(*args).compile()
            began = time.monotonic()
            part |= {
                f"{row}.{name}": np.asarray(value)
                for name, value in compiled[row](*args).items()
                if name != "terms"
            }
            part[f"{row}.seconds"] = time.monotonic() - began
        if distributed.first():
            npz.save(parts / f"{batch['index'][0]:08d}.npz", part)
        return part["index"]

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


def measured_before(parts: Path, rows: Collection[str]) -> list[dict[str, np.ndarray]]:
    """Read the finished batches in a folder; a damaged one is removed, to be measured again.

    Args:
      parts: the folder.
      rows: the rows of the table, which every batch must have.

    Returns:
      For each batch {'index': (n,), 'row.name': (n, ...) or (1, ...), 'row.seconds': ()}.
    """
    found = []
    for file in sorted(parts.glob("[0-9]*.npz")):
        part = store.load(file, lambda file: _part(file, rows))
        if part is None:
            file.unlink()
        else:
            found.append(part)
    return found


def _part(file: Path, rows: Collection[str]) -> dict[str, np.ndarray]:
    """A finished batch; UserError where the file is damaged or has not these rows."""
    needed = {
        f"{row}.{name}": npz.ArraySpec("fiu", finite=False)
        for row in rows
        for name in ("total", "nfe")
    }
    needed |= {f"{row}.seconds": npz.ArraySpec("f", ()) for row in rows}
    index, other = {"index": npz.ArraySpec("iu", (None,))}, npz.ArraySpec("fiu", finite=False)
    part = npz.load(file, index | needed, lambda name: other)
    count = len(part["index"])
    sizes = {name: value.shape[:1] for name, value in part.items() if not name.endswith(".seconds")}
    if part["index"].min(initial=0) < 0 or not set(sizes.values()) <= {(), (1,), (count,)}:
        raise UserError(f"'{file}' is damaged: its arrays do not fit each other")
    return part


def gather(parts: list[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Join batches by the numbers of their images; seconds are summed.

    Args:
      parts: the batches.
      count: number of images; those beyond are dropped.
    """
    found: dict[str, Any] = {}
    for part in parts:
        keep = part["index"] < count
        for name in (name for name in part if name != "index"):
            values = part[name]
            if name.endswith(".seconds"):
                found[name] = found.get(name, 0.0) + values
            else:
                values = np.broadcast_to(values, (len(keep), *values.shape[1:]))
                whole = found.setdefault(name, np.zeros((count, *values.shape[1:])))
                whole[part["index"][keep]] = values[keep]
    return found
