"""The files that a command will write: named by a flag, and tried before anything takes long."""

from __future__ import annotations

import os
from pathlib import Path

from diffusion_jax.core import files, parsing
from diffusion_jax.training import distributed


def named(flag: str, text: str, *endings: str, default: str | Path = "") -> dict[str, Path]:
    """Return the files that a command writes for --flag=NAME, which can be written.

    Args:
      flag: name of the flag without dashes, for the message.
      text: a path with or without one of the endings; '' is `default`.
      *endings: the endings of what the command writes, such as '.npz' and '.png'.
      default: the name where the flag is not given.

    Returns:
      {ending: path}.

    Raises:
      UserError: as `parsing.output`, and where the files cannot be written.
    """
    found = parsing.output(flag, text, *endings, default=default)
    need_writable(*found.values())
    return found


def folder(flag: str, text: str | Path, name: str) -> Path:
    """Return the folder to write to, given as --flag=FOLDER.

    Args:
      flag: name of the flag without dashes, for the message.
      text: the path; it need not exist, and is not made here.
      name: a file that the command writes into it.

    Raises:
      UserError: if the path is a file, and where the folder cannot be written.
    """
    found = parsing.folder(flag, text)
    need_writable(found / name)
    return found


def need_writable(*paths: str | os.PathLike) -> None:
    """Check that the process that writes can write files, whose folders need not exist yet.

    Args:
      *paths: the files.

    Raises:
      UserError: naming the first one that cannot be written.
    """
    if distributed.first():
        for path in paths:
            files.check_writable(path)
