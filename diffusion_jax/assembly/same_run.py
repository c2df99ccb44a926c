"""What may differ from a run's own config and data when it resumes and when its model is used."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import data
from diffusion_jax.assembly import components, config_schema, data_record, defaults
from diffusion_jax.core import files, provenance, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import columns
from diffusion_jax.data.condition_arrays import DENSE, VECTOR
from diffusion_jax.data.normalization import ConditionUnits, Normalization
from diffusion_jax.data.sources import Renormalized

CLOSE = 1e-3  # share of its size by which the end of a range may differ, such as by resampling

# A resumed run may change these keys, and all of a section, which ends with a dot; any other
# difference makes it another run.
FREE = (
    "sampler.",
    "training.steps",
    "training.log_every",
    "training.eval_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep",
    "training.keep_every",
    "training.best",
    "training.on_nonfinite",
    "training.trackers",
    "training.first_shapes",
    "ema.snapshot_every",
    "model.remat",
    "parallel",
    "mesh.",
    "data.path",
    "data.data_dir",
    "data.workers",
    "latent.",
    "text.folder",
)


# A command on a trained model may change these. Of the others it says why not.
USABLE = (
    "sampler.",
    "data.",
    "latent.",
    "text.folder",
    "parallel",
    "mesh.",
    "model.dtype",
    "model.remat",
    "model.attention_impl",
    "model.dropout",
    "model.dropout_height",
)

NETWORK = (
    "data.condition",
    "data.dense",
    "model.",
    "parameterization",
    "objective",
    "process",
    "conditional",
    "text.",
    "discriminator",
)


def resolved(config: Any) -> dict[str, Any]:
    """Return a config as config.json holds it: plain JSON data.

    Args:
      config: a ConfigDict.
    """
    return json.loads(files.canonical_json(config.to_dict()))


def check_resumed(workdir: Path, new: Mapping[str, Any], keys: tuple[str, ...] = ()) -> None:
    """Refuse to resume the run in this workdir, which has checkpoints, by another config.

    Without its config.json, only the very same config is accepted: provenance.json holds the hash
    of it.

    Args:
      workdir: the folder of the run.
      new: the config of this command, as `resolved` returns it.
      keys: what is compared, as `among` reads it; () for everything.

    Raises:
      UserError: naming every key that differs, or for a run whose config is unknown.
    """
    file, stamp = workdir / "config.json", workdir / "provenance.json"
    if file.exists():
        _check_same(workdir, files.load_json(file, reading.table()), new, keys)
    elif not stamp.exists() or files.load_json(stamp, reading.table()).get(
        "config_hash"
    ) != provenance.config_hash(new):
        raise UserError(
            f"{workdir} has checkpoints but no config.json, and this is not the config that they "
            "were trained by as far as provenance.json can tell; put config.json back, or "
            "use another --workdir"
        )


def _check_same(
    workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any], keys: tuple[str, ...] = ()
) -> None:
    # keys that the run's code did not know yet have the values that mean what it did
    old = json.loads(files.canonical_json(defaults.filled(old)))
    old, new = _values(old), _values(new)
    # earlier versions spelled the teacher's own scale as 0
    if old.get("distill.guidance") == 0.0 and new.get("distill.guidance", 0.0) is None:
        old["distill.guidance"] = None
    for config in (old, new):  # arrays that are read without the key have their channels last
        config["data.channel_axis"] = config.get("data.channel_axis") or "last"
    # a key that the run's code did not know yet is no change at a value that means what it did
    changed = [
        k
        for k in sorted(old | new)
        if old.get(k) != new.get(k)
        and not among(k, FREE)
        and (k in old or new[k])
        and (not keys or among(k, keys))
    ]
    if changed:
        what = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} here)" for k in changed)
        raise UserError(
            f"{workdir} holds another run: {what}; use another --workdir, or the same values"
        )


def check_usable(workdir: Path, own: Mapping[str, Any], config: Any, same_network: bool) -> None:
    """Refuse to use the model of a workdir by a config of another network or another training.

    Args:
      workdir: the workdir of the trained model, for messages.
      own: the content of its config.json; {} where it is missing, and nothing is refused.
      config: the config that it is to be used by.
      same_network: whether the config's process shows the network the same inputs as that of the
        workdir.

    Raises:
      UserError: naming the first key that differs.
    """
    old, new = _values(own), _values(resolved(config))
    free = [k for k in new if among(k, USABLE) and not among(k, NETWORK[:2])]
    for key in (k for k in old if k in new and old[k] != new[k] and k not in free):
        if key == "process" and same_network:
            continue
        why = (
            "would not be the network that was trained"
            if among(key, NETWORK)
            else "only matters in training"
        )
        raise UserError(
            f"config.{key}={new[key]} {why} ({old[key]} in {workdir}); leave it out, or train "
            "another model with it"
        )


def among(key: str, names: tuple[str, ...]) -> bool:
    """Return whether a key is one of some names, or in a section that is one of them.

    Args:
      key: a key of a config, with dots.
      names: keys, and sections, which end with a dot: 'data.' has all keys of config.data.
    """
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values of a config, with the current full names of components."""
    values = dict(config_schema.leaves(config))
    for key in components.NAMED.keys() & values.keys():
        with contextlib.suppress(UserError):
            values[key] = components.full_name(key, values[key])
    return values


def names_the_same_data(workdir: Path, config: Any) -> bool:
    """Return whether a config names the data that the run in a folder had.

    Args:
      workdir: the folder of the run, with its config.json.
      config: the config of this command.
    """
    old = files.load_json(workdir / "config.json", reading.record({"data": reading.table()}))[
        "data"
    ]
    return all(
        old.get(key, "") == config.data.get(key, "")
        for key in ("name", "path", "data_dir", "captions")
    )


def same_data(
    workdir: Path,
    about: Mapping[str, Any],
    loaded: data.Dataset,
    *,
    sizes: bool,
    values: bool = False,
) -> data.Dataset:
    """The data set with the numbers of its classes as the run in `workdir` has them.

    Runs of versions that put folders in text order ('10' before '2') keep that order.

    Args:
      workdir: the folder of the run, for messages.
      about: its data.json.
      loaded: what the data are now.
      sizes: whether the numbers of images must be the same.
      values: whether the ranges of values must be the same, where they are recorded; others are
        normalized as in training.

    Raises:
      UserError: naming what differs from data.json.
    """
    names = tuple(about["class_names"])
    if (
        names != loaded.class_names
        and sorted(names) == sorted(loaded.class_names)
        and list(names) == sorted(names)
    ):
        table = [names.index(name) for name in loaded.class_names]
        train, test = (data.Relabeled(split, table) for split in (loaded.train, loaded.test))
        loaded = loaded._replace(train=train, test=test, class_names=names)
    moved = _moved(about, loaded) if values else []
    normalized = data_record.normalization(about)
    if normalized and loaded.normalization and _same_channels(normalized, loaded.normalization):
        # the model knows its own normalization, whatever the data are now
        train, test = (split.normalized_by(normalized) for split in (loaded.train, loaded.test))
        loaded = loaded._replace(train=train, test=test, normalization=normalized)
    loaded = _in_units(loaded, data_record.units(about))
    if differences := _differences(about, loaded, sizes) or moved:
        raise UserError(
            f"--workdir={workdir}: the data are not those that its model learned from: "
            f"{'; '.join(differences)}; restore them, or train in another --workdir"
        )
    return loaded


def _moved(about: Mapping[str, Any], loaded: data.Dataset) -> list[str]:
    """Describe the first channel whose values have another range than in data.json."""
    pairs = [("channel", data_record.normalization(about), loaded.normalization)]
    known = data_record.units(about)._asdict()
    pairs += [(n, known[n], own) for n, own in loaded.units._asdict().items()]
    for name, there, here in pairs:
        if there is None or here is None or len(there.low) != len(here.low):
            continue
        channels = columns.channels(here.columns)
        own = [column.name for column, _ in channels for _ in range(column.width)]
        for i, (low, high) in enumerate(zip(there.low, there.high)):
            what = own[i] if own else f"{name} {i}"
            slack = CLOSE * max(high - low, abs(low), abs(high))
            if abs(here.low[i] - low) > slack or abs(here.high[i] - high) > slack:
                return [
                    f"the values of {what} are from {here.low[i]:g} to {here.high[i]:g}, and were "
                    f"from {low:g} to {high:g}"
                ]
    return []


def _same_channels(one: Normalization, other: Normalization) -> bool:
    """Whether two normalizations are of the same channels."""
    same = len(one.shift) == len(other.shift) and one.sound == other.sound
    return same and not columns.difference(one.columns, other.columns)


def _in_units(loaded: data.Dataset, units: ConditionUnits) -> data.Dataset:
    """The data set whose conditions have the units of the run, which the model knows."""
    changes = {
        name: (mine, theirs)
        for name, mine, theirs in zip((VECTOR, DENSE), loaded.units, units)
        if mine and theirs and mine != theirs and len(mine.shift) == len(theirs.shift)
    }
    if not changes:
        return loaded
    train, test = (Renormalized(split, changes) for split in (loaded.train, loaded.test))
    return loaded._replace(train=train, test=test, units=units)


def _differences(about: Mapping[str, Any], loaded: data.Dataset, sizes: bool) -> list[str]:
    """Describe how a data set differs from the one in data.json."""
    found, names = [], about["class_names"]
    if "train_size" not in about and names == list(
        map(str, range(len(names)))
    ):  # of imported weights: names made up
        names = []
    if about["image_shape"] != list(loaded.image_shape):
        found.append(f"examples are {loaded.image_shape}, and were {tuple(about['image_shape'])}")
    if names and list(loaded.class_names) != names:
        found += [f"class {name} is new" for name in loaded.class_names if name not in names][:5]
        found += [f"class {name} is gone" for name in names if name not in loaded.class_names][:5]
        found = found or [
            f"the classes are in another order ({', '.join(names[:5])}, ... in data.json)"
        ]
    elif about["num_classes"] != loaded.num_classes:
        found.append(f"{loaded.num_classes} classes, and there were {about['num_classes']}")
    known = data_record.normalization(about)
    if (known is None) != (loaded.normalization is None):
        found.append("the values are normalized otherwise")
    elif known and known.sound != loaded.normalization.sound:
        found.append("the sounds are represented otherwise")
    elif known and (changed := columns.difference(known.columns, loaded.normalization.columns)):
        found.append(changed)
    for name, own in loaded.units._asdict().items():
        there, here = (
            len(x["shift"]) if x else 0 for x in (about.get(name), own and own._asdict())
        )
        if there != here:
            key = {"vector": "data.condition", "dense": "data.dense"}[name]
            found.append(f"the array of {key} has {here} columns, and had {there}")
    encoded = loaded.encoded and json.loads(files.canonical_json(loaded.encoded._asdict()))
    if "encoded" in about and about["encoded"] != encoded:
        found.append("the latents were encoded otherwise")
    for split, source in (("train", loaded.train), ("test", loaded.test)):
        count = about.get(f"{split}_size")
        if sizes and source is not None and count not in (None, len(source)):
            found.append(f"{len(source):,} {split} images, and there were {count:,}")
    return found
