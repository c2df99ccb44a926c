"""What may differ between two configs of one run: when training resumes, and when a trained model is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import provenance, reading
from diffusion_jax.errors import UserError

# A resumed run may change these keys, and all of a section that ends with a dot; any other difference makes it another run.
FREE = ("sampler.", "training.steps", "training.log_every", "training.eval_every", "training.sample_every",
        "training.checkpoint_every", "training.keep", "training.keep_every", "training.best", "training.on_nonfinite",
        "ema.snapshot_every", "model.remat", "parallel", "mesh.", "data.path", "data.data_dir", "data.workers", "latent.")  # fmt: skip

# A command on a trained model may change these. Of the others it says why not.
USABLE = ("sampler.", "data.", "latent.", "parallel", "mesh.", "model.dtype", "model.remat", "model.attention_impl", "model.dropout")
NETWORK = ("model.", "parameterization", "objective", "process", "conditional", "text.", "discriminator")


def resolved(config: Any) -> dict[str, Any]:
    """A config as config.json holds it: plain JSON data."""
    return json.loads(provenance.canonical_json(config.to_dict()))


def check_resumed(workdir: Path, new: Mapping[str, Any]) -> None:
    """Refuse to resume the run in this workdir, which has checkpoints, by another config than its own.

    Without its config.json, only the very same config is accepted: provenance.json holds the hash of it.

    Raises:
      UserError: naming every key that differs, or for a run whose config cannot be told.
    """
    file, stamp = workdir / "config.json", workdir / "provenance.json"
    if file.exists():
        _check_same(workdir, provenance.load_json(file, reading.table()), new)
    elif not stamp.exists() or provenance.load_json(stamp, reading.table()).get("config_hash") != provenance.config_hash(new):
        raise UserError(f"{workdir} has checkpoints but no config.json, and this is not the config that they were trained by as far as "
                        "provenance.json can tell; put config.json back, or use another --workdir")  # fmt: skip


def _check_same(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    old, new = dict(_leaves(old)), dict(_leaves(new))
    if old.get("distill.guidance") == 0.0 and new.get("distill.guidance", 0.0) is None:  # the former spelling of the teacher's own scale
        old["distill.guidance"] = None
    # a key that the run's code did not know yet, at a value that means what that code did, is no change
    changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and not among(k, FREE) and (k in old or new[k])]
    if changed:
        what = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} here)" for k in changed)
        raise UserError(f"{workdir} holds another run: {what}; use another --workdir, or the same values")


def check_usable(workdir: Path, config: Any, same_network: bool) -> None:
    """Refuse to use the model of a workdir by a config that says something else of its network or its training.

    Args:
      workdir: of the trained model.
      config: the config that it is to be used by.
      same_network: whether the config's process shows the network the same inputs as that of the workdir.

    Raises:
      UserError: naming the first key that differs.
    """
    file = workdir / "config.json"
    if not file.exists():
        return
    old, new = dict(_leaves(provenance.load_json(file, reading.table()))), dict(_leaves(resolved(config)))
    for key in (k for k in old if k in new and old[k] != new[k] and not among(k, USABLE)):
        if key == "process" and same_network:
            continue
        why = "would not be the network that was trained" if among(key, NETWORK) else "only matters in training"
        raise UserError(f"config.{key}={new[key]} {why} ({old[key]} in {workdir}); leave it out, or train another model with it")


def among(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of these names, or in a section of theirs, which ends with a dot."""
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
