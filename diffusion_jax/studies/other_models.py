"""The trained models that a comparison measures too, by names that tell them apart."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from diffusion_jax.pretrained import addresses


def named(others: Sequence[str], taken: Collection[str] = ()) -> dict[str, Path]:
    """The local folders of --others by name; one that is named twice counts once.

    Args:
      others: paths, names of shipped models, and addresses.
      taken: names that other rows of the comparison have.

    Returns:
      The last part of each folder's path, or the whole path where that is taken, -> the folder.
    """
    found = [Path(addresses.resolve(other, "--others")) for other in others]
    paths = {Path(os.path.abspath(path)): path for path in reversed(found)}
    short = [path.name for path in paths]
    return {
        str(own) if path.name in taken or short.count(path.name) > 1 else path.name: own
        for path, own in reversed(paths.items())
    }
