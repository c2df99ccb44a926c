"""Files of published weights: where they are in a folder, and their arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core import files, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import flaxfile, safetensors, torchfile

FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.pt",
)
INDEX = ".index.json"
_INDEX = reading.record({"weight_map": reading.table(reading.text(1, 200))})


def find(path: Path) -> Path:
    """Find the file of weights.

    Args:
      path: the file itself, or a folder that has one of FILES or a subfolder unet/ or
        transformer/ with one.

    Raises:
      UserError: where there is none.
    """
    folders = (path, path / "unet", path / "transformer")
    for candidate in [path, *(folder / name for folder in folders for name in FILES)]:
        if candidate.is_file():
            return candidate
    if (path / "model_index.json").is_file():
        raise UserError(
            f"--path={path} is a pipeline that has no weights in unet/ or transformer/; name the "
            "folder of one of its networks"
        )
    raise UserError(
        f"--path={path} has no weights: neither {', '.join(FILES[:-1])} nor {FILES[-1]}"
    )


def read(file: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file of weights.

    Args:
      file: a safetensors file by its suffix, one of flax by its first byte; any other file is read
        as one of torch.

    Returns:
      {name of the tensor: array}.
    """
    if file.suffix == ".safetensors":
        return safetensors.load_file(file)
    data = file.read_bytes()
    return flaxfile.load(data) if flaxfile.is_flax(data) else torchfile.load(data)


def whole(folder: Path, names: Sequence[str]) -> Path:
    """Find the file of weights of a folder, or the index of a network that is in several files.

    Args:
      folder: the folder.
      names: the names that the file may have, the preferred one first.

    Returns:
      The file. NAME.index.json lists the files of which NAME would consist.

    Raises:
      UserError: where there is none.
    """
    for name in names:
        for found in (folder / name, folder / f"{name}{INDEX}"):
            if found.is_file():
                return found
    raise UserError(f"'{folder}' has no weights: none of {', '.join(names)}")


def read_whole(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a network of one file or of several.

    Args:
      folder: the folder.
      names: as of `whole`.

    Returns:
      {name of the tensor: array}.

    Raises:
      UserError: where there is no file, and for damaged files and an index of other files.
    """
    found = whole(folder, names)
    if not found.name.endswith(INDEX):
        return read(found)
    files_of = reading.json_file(found, _INDEX)["weight_map"]
    parts = {}
    for name in dict.fromkeys(files_of.values()):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"'{found}' lists the file {name:.100}, which '{folder}' does not have")
        parts |= {key: tensor for key, tensor in read(folder / name).items() if key in files_of}
    if lost := [key for key in files_of if key not in parts]:
        raise UserError(f"the files that '{found}' lists have no tensor {lost[0]:.100}")
    return parts


def scheduler_beside(file: Path) -> dict[str, Any]:
    """Read the scheduler_config.json that belongs to a file of weights.

    Args:
      file: the file of weights; the scheduler is in the same folder, or in scheduler/ of the
        pipeline.

    Returns:
      The content of the file; {} if there is none.
    """
    places = (
        file.parent / "scheduler_config.json",
        file.parent.parent / "scheduler" / "scheduler_config.json",
    )
    return next(
        (files.load_json(place, reading.table()) for place in places if place.is_file()), {}
    )


def sha256(file: Path) -> str:
    """Compute the SHA-256 hash of a file.

    Args:
      file: a file of any size; it is read in blocks.

    Returns:
      64 hexadecimal digits.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
