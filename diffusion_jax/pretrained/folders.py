"""The published workdir: the few files from which a trained model is used, shared and fine-tuned.

config.json          the resolved config, without paths of the machine that trained the model
data.json            shape and classes of the data
weights.safetensors  one set of weights, in float16 or bfloat16
grids/NAME.json      times that experiments.optimize_grid placed for the model
autoencoder/         of a model of latents: its autoencoder, a folder of the same kind
manifest.json        size and sha256 of all files above, and which weights of the run they are
README.md, samples.png    for readers; no command reads them

experiments.publish writes such a folder, and every command that takes a trained model reads it.
Nothing in it is a program, and no command writes into it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.core import files, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import safetensors

MANIFEST, CONFIG, DATA, WEIGHTS = "manifest.json", "config.json", "data.json", "weights.safetensors"
AUTOENCODER = "autoencoder"
CARD, PICTURE = "README.md", "samples.png"
FORMAT = 1  # of the folder
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
LARGEST = 2**36  # bytes of a file

# The only names that a manifest may list: nothing leads out of the folder.
_GRID = r"grids/[A-Za-z0-9][\w.\-]{0,99}\.json"
_NAME = re.compile(
    rf"(?:{AUTOENCODER}/)?(?:config\.json|data\.json|weights\.safetensors|{_GRID})"
    rf"|{AUTOENCODER}/manifest\.json",
    re.ASCII,
)

_ENTRY = reading.record(
    {"bytes": reading.integer(0, LARGEST), "sha256": reading.text(64, 64)}, others=reading.anything
)


def _files(value: Any, place: str) -> None:
    """Check the files of a manifest and their names."""
    reading.table(_ENTRY)(value, place)
    if len(value) > 1000:
        raise reading.Mismatch(f"{place} lists {len(value)} files, and at most 1000 are read")
    if wrong := [name for name in value if not _NAME.fullmatch(name)]:
        raise reading.Mismatch(f"{place} lists '{wrong[0]:.60}', which is no file of a model")
    if missing := {CONFIG, DATA, WEIGHTS} - value.keys():
        raise reading.Mismatch(f"{place} lacks {', '.join(sorted(missing))}")


_RULE = reading.record(
    {
        "format": reading.one_of(FORMAT),
        "step": reading.integer(),
        "weights": reading.text(1, 100),
        "files": _files,
    }
)


def is_published(path: str | os.PathLike) -> bool:
    """Return whether a folder is a published workdir, by its manifest.

    Args:
      path: the folder, which need not exist.
    """
    return os.path.isfile(os.path.join(path, MANIFEST))


def manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """Read the manifest of a published workdir.

    Args:
      folder: the folder.

    Returns:
      {'format', 'step', 'weights', 'files': {name: {'bytes', 'sha256'}}}.

    Raises:
      UserError: for one that is missing, damaged or of another format.
    """
    return manifest_of(reading.content(Path(folder) / MANIFEST), f"'{Path(folder) / MANIFEST}'")


def manifest_of(text: bytes, what: str) -> dict[str, Any]:
    """Read the text of a manifest; see `manifest`.

    Args:
      text: the content of the file.
      what: where it comes from, for messages.
    """
    return reading.json_text(text, what, _RULE)


def write_manifest(folder: str | os.PathLike, step: int, weights: str) -> None:
    """Write the manifest of a folder whose other files are there.

    Args:
      folder: the folder.
      step: the step of training of the weights.
      weights: which weights of the run they are, such as the name of an EMA.
    """
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
    record = {name: _entry(path) for name, path in found.items() if _NAME.fullmatch(name)}
    value = {"format": FORMAT, "step": step, "weights": weights, "files": record}
    files.save_json(Path(folder) / MANIFEST, value)


def _entry(path: Path) -> dict[str, Any]:
    content = reading.content(path, LARGEST)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def others(folder: str | os.PathLike) -> list[str]:
    """Return the files in a published workdir that are not part of it, such as those of git.

    Args:
      folder: the folder.
    """
    own = {MANIFEST, CARD, PICTURE, *manifest(folder)["files"]}
    found = (path for path in Path(folder).rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in found} - own)


def content(folder: str | os.PathLike, name: str) -> bytes:
    """Read a file of a published workdir, and compare it with the manifest.

    Args:
      folder: the folder.
      name: a name that the manifest lists.

    Raises:
      UserError: for a file that is missing or not the one that was published.
    """
    wanted = manifest(folder)["files"].get(name)
    if wanted is None:
        raise UserError(f"'{Path(folder) / MANIFEST}' does not list {name}")
    found = reading.content(Path(folder) / name, LARGEST)
    if len(found) != wanted["bytes"] or hashlib.sha256(found).hexdigest() != wanted["sha256"]:
        raise UserError(
            f"'{Path(folder) / name}' is damaged, or not the file that was published: its sha256 "
            f"is not that of {MANIFEST}; download or publish it again"
        )
    return found


def check(folder: str | os.PathLike) -> None:
    """Compare all files of a published workdir with its manifest.

    Args:
      folder: the folder.

    Raises:
      UserError: naming the first file that is missing or differs.
    """
    for name in manifest(folder)["files"]:
        content(folder, name)


def save_weights(
    folder: str | os.PathLike, leaves: Mapping[str, np.ndarray], dtype: str
) -> dict[str, np.ndarray]:
    """Write weights.safetensors.

    Args:
      folder: the folder.
      leaves: parameters by their paths.
      dtype: a key of DTYPES, to which they are rounded.

    Returns:
      The rounded parameters.

    Raises:
      UserError: for weights that are not finite, or beyond the range of the dtype.
    """
    rounded = {}
    for name, leaf in leaves.items():
        with np.errstate(over="ignore"):
            rounded[name] = np.asarray(leaf).astype(DTYPES[dtype])
        if not np.isfinite(rounded[name].astype(np.float32)).all():
            why = "is not finite" if not np.isfinite(leaf).all() else f"has values beyond {dtype}"
            advice = "; use --dtype=bfloat16" if np.isfinite(leaf).all() else ""
            raise UserError(f"the parameter {name} {why}, so it cannot be published{advice}")
    safetensors.save(Path(folder) / WEIGHTS, rounded)
    return rounded


def read_weights(folder: str | os.PathLike, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read weights.safetensors for a network.

    Args:
      folder: the folder.
      wanted: the leaves of the network by their paths, as arrays or ShapeDtypeStructs.

    Returns:
      {path: array} of the dtypes of `wanted`.

    Raises:
      UserError: naming the first tensor that is missing, left over, of another shape or not finite.
    """
    place = f"'{Path(folder) / WEIGHTS}'"
    try:
        found = safetensors.load(content(folder, WEIGHTS))
    except UserError as error:
        raise UserError(str(error) if place in str(error) else f"{place}: {error}") from None
    for path in [*wanted, *found]:
        have = found[path].shape if path in found else "missing"
        want = tuple(wanted[path].shape) if path in wanted else "not a parameter"
        if have != want:
            raise UserError(
                f"{place} does not fit its config: {path} is {have} in the file and {want} in the "
                "network"
            )
    for path, leaf in found.items():
        if leaf.dtype not in (np.float32, *DTYPES.values()):
            raise UserError(f"{place}: {path} is {leaf.dtype}, and must be a floating-point number")
        if not np.isfinite(leaf.astype(np.float32)).all():
            raise UserError(f"{place}: {path} is not finite")
    return {path: found[path].astype(leaf.dtype) for path, leaf in wanted.items()}


def outputs(workdir: str | os.PathLike) -> Path:
    """Return the folder for what a command makes of a model: the workdir, if that is a run.

    No command writes into a published workdir: what it makes of one in .../NAME goes to
    runs/pretrained/NAME in the current folder.

    Args:
      workdir: the local folder of the model.
    """
    if not is_published(workdir):
        return Path(workdir)
    folder = Path(os.path.abspath(workdir))
    parent = f"{folder.parent.name}_" if is_published(folder.parent) else ""
    return Path("runs") / "pretrained" / f"{parent}{folder.name}"


def refuse_to_write(workdir: str | os.PathLike) -> None:
    """Refuse a published workdir as the folder of a run that trains.

    Args:
      workdir: the local folder.

    Raises:
      UserError: for a published one.
    """
    if is_published(workdir):
        raise UserError(
            f"--workdir={workdir} is a published model, which is never changed; train in another "
            f"folder, from its weights with --config.init_from={workdir}"
        )
