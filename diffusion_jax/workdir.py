"""A run's folder: what is in it, how a run starts or resumes in it, and how a trained model comes out of it.

    config.json      the resolved config           data.json        shape and classes of the data
    provenance.json  commit, versions, machine     checkpoints/     Orbax, verified (training/checkpoint.py)
    metrics.jsonl    one row per log interval      tensorboard/     the same as events
    samples/         grids drawn while training        grids/           times placed for the model, by experiments.optimize_grid
    ema_snapshots/   power EMAs, for those of other lengths (training/post_hoc.py)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_jax import experiment, provenance
from diffusion_jax.errors import UserError
from diffusion_jax.experiment import Experiment
from diffusion_jax.training import checkpoint, distributed, post_hoc, sharding
from diffusion_jax.types import Params

# A resumed run may change these; any other difference would make it another run.
FREE = ("sampler.", "training.steps", "training.log_every", "training.eval_every", "training.sample_every",
        "training.checkpoint_every", "training.keep", "ema.snapshot_every", "model.remat", "parallel", "mesh.",
        "data.path", "data.data_dir", "data.workers")  # fmt: skip


def prepare(workdir: str | Path, config: ConfigDict, dataset) -> Path:
    """Make the folder and write what describes the run (the first process); on a resumed run check that the config is the same.

    Raises UserError naming every key that differs, or if the folder cannot be written.
    """
    workdir = Path(workdir).absolute()
    resolved = json.loads(provenance.canonical_json(config.to_dict()))
    if (workdir / "config.json").exists() and checkpoint.latest_step(workdir / "checkpoints") is not None:
        _same(workdir, provenance.load_json(workdir / "config.json"), resolved)
    if not distributed.first():
        return workdir
    try:
        provenance.save_json(workdir / "config.json", resolved)
        provenance.save_json(workdir / "provenance.json", provenance.provenance(resolved, config.seed))
        provenance.save_json(workdir / "data.json", {
            "name": dataset.name, "image_shape": dataset.image_shape, "num_classes": dataset.num_classes,
            "class_names": dataset.class_names})  # fmt: skip
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    return workdir


def _same(workdir: Path, old: dict, new: dict) -> None:
    old, new = dict(_leaves(old)), dict(_leaves(new))
    changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and not k.startswith(FREE)]
    if changed:
        what = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} here)" for k in changed)
        raise UserError(f"{workdir} holds another run: {what}; use another --workdir, or the same values")


def _leaves(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


class Trained(NamedTuple):
    """A model out of a workdir."""

    experiment: Experiment
    params: Params
    step: int
    weights: str  # which: 'params', the name of an EMA, or 'post_hoc(LENGTH)'
    data: dict[str, Any]  # data.json


def load(workdir: str | Path, config: ConfigDict, mesh=None) -> Trained:
    """The newest whole checkpoint of a workdir, with the weights that config.sampler.ema names. UserError if there is none.

    mesh: where they go, each into its place; None: whole, where jax puts an array.
    """
    workdir = Path(workdir).absolute()
    data = provenance.load_json(workdir / "data.json")
    built = experiment.assemble(config, data["image_shape"], data["num_classes"])._replace(grids=workdir / "grids")
    template = jax.eval_shape(lambda key: experiment.init_params(built, key), jax.random.key(0))
    template = sharding.placed(template, mesh) if mesh else template
    if length := post_hoc.length_of(config.sampler.ema):
        made = post_hoc.reconstruct(workdir / "ema_snapshots", length, template)
        params = sharding.put(made.params, mesh) if mesh else made.params
        return Trained(built, params, made.step, config.sampler.ema, data)
    which = experiment.weights_name(config)
    restored = checkpoint.restore_params(workdir / "checkpoints", None if which == "params" else which, template=template)
    return Trained(built, restored.state, restored.step, which, data)
