"""The one place that says which folder --workdir and other names of trained models mean.

runs/a                        the folder of a run, or a published workdir (folders.py)
mnist                         pretrained/mnist of the repository, unless there is a folder mnist
gs://BUCKET/runs/a            a run in an object store (core/staging.py)
https://HOST/PATH/mnist       a published workdir, which is downloaded once (hub.py)
hf://OWNER/NAME[@REVISION]    a published workdir on the Hugging Face Hub, likewise
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

from diffusion_jax.core import staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import consent
from diffusion_jax.pretrained import folders, hub

SHIPPED = Path(__file__).parents[2] / "pretrained"  # of a clone; the wheel has none


def resolve(path: Any, key: str = "--workdir") -> Any:
    """Return the local folder of a trained model; what is a local path already stays as it is.

    Args:
      path: a path, the bare name of a model that the repository ships, or a URL.
      key: the flag or config key that names it, for messages.

    Raises:
      UserError: for an address that cannot be used, and one that only a file of others names.
    """
    if hub.is_address(path):
        if not consent.remembered(str(path)):
            raise UserError(
                f"{key}={path}: you have not named this address on this machine, so nothing is "
                f"downloaded from it; if you trust it, name it once: --workdir={path}"
            )
        return hub.fetched(str(path), key)
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
    if name in (found := names()):
        if not os.path.isdir(name):
            return found[name]
        _say(f"note: {key}={name} is the folder {name}, not the model that is shipped as {name}")
    return staging.local(path, key)


def names() -> dict[str, str]:
    """Return the models that the repository ships: {name: folder}."""
    if not SHIPPED.is_dir():
        return {}
    found = {entry.name: entry for entry in sorted(SHIPPED.iterdir())}
    return {
        name: _short(folder)
        for name, folder in found.items()
        if re.fullmatch(r"[A-Za-z0-9][\w.\-]*", name) and folders.is_published(folder)
    }


def _short(folder: Path) -> str:
    """A path as a user of the clone writes it, if the clone is the current folder."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


@functools.cache
def _say(line: str) -> None:
    """Print a line once in a process."""
    print(line, file=sys.stderr)
