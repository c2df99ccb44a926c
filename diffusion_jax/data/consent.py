"""Which data the user has named: a stranger's config.json cannot make a command read others.

A run that the user starts remembers the data paths of its config, for this user on this machine,
and so does every command that is given one. A stored config may only lead to such paths again; any
other is left out until the user names it with --config.data.path=... (docs/security.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from diffusion_jax.core import buckets, files
from diffusion_jax.core.errors import UserError

KEYS = ("path", "data_dir", "captions")  # of config.data


def remember(path: str) -> None:
    """Remember that the user has named this path.

    In a home that cannot be written nothing is remembered, and the user names it each time.

    Args:
      path: the path as the user has written it; '' is not remembered.
    """
    if path:
        # RuntimeError: the user has no home
        with contextlib.suppress(UserError, OSError, RuntimeError):
            files.save_text(_record(path), f"{_real(path)}\n")


def remembered(path: str) -> bool:
    """Return whether `remember` was called for a path, by any command of this user.

    Args:
      path: the path; '' stands for data that need none, and counts as remembered.
    """
    with contextlib.suppress(OSError, RuntimeError):
        return not path or _record(path).is_file()
    return False


def _record(path: str) -> Path:
    """Return the file that records a path; one each, so that commands do not collide."""
    digest = hashlib.sha256(os.fsencode(_real(path))).hexdigest()[:32]
    return Path.home() / ".cache" / "diffusion_jax" / "data_paths" / digest


def _real(path: str) -> str:
    return path if buckets.is_url(path) else os.path.realpath(os.path.expanduser(path))
