"""Restoring from checkpoints: the newest one that is whole, all of it or the parameters alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.training import distributed, verification
from diffusion_jax.training.placement import leaves_by_path
from diffusion_jax.training.verification import DamagedCheckpoint


class Restored(NamedTuple):
    """The content of a checkpoint.

    Attributes:
      state: the state, or the parameters if only they were requested.
      step: the step of the checkpoint.
      extra: the JSON data that was saved with it.
    """

    state: Any
    step: int
    extra: dict[str, Any]


def latest_step(directory: str | os.PathLike) -> int | None:
    """Return the step of the newest checkpoint, damaged or not; None if there is none.

    Args:
      directory: the folder of the checkpoints, which need not exist.
    """
    return max(steps(Path(directory)), default=None)


def restore(
    directory: str | os.PathLike, template: Any, *, step: int | None = None, multiple_of: int = 1
) -> Restored | None:
    """The newest whole checkpoint, or None where there is no checkpoint at all.

    A damaged checkpoint is passed over with one warning on stderr; nothing in the folder changes.

    Args:
      directory: the folder of the checkpoints.
      template: a tree of arrays, or of ShapeDtypeStructs with shardings (`Runner.template`); the
        devices need not be those on which the checkpoint was saved.
      step: restore the checkpoint of this step only.
      multiple_of: consider only checkpoints at multiples of this step, if there are any.

    Raises:
      UserError: if all checkpoints are damaged, or if the newest whole one is of another model, in
        which case it names the first leaf that differs.
    """
    wanted = leaves_by_path(template)

    def read(folder: Path, leaves: dict[str, dict]) -> Any:
        verification.check_model(folder, leaves, wanted)
        return _unflatten(template, verification.read_leaves(folder, leaves, wanted))

    return _newest(Path(directory).absolute(), step, read, multiple_of)


def restore_params(
    directory: str | os.PathLike,
    which: str | None = None,
    *,
    template: Any = None,
    step: int | None = None,
) -> Restored:
    """Restore only the parameters, or one of their EMAs, of the newest whole checkpoint.

    Args:
      directory: the folder of the checkpoints.
      which: the name of an EMA, such as '50k'; None restores the parameters.
      template: as in `restore`, for the parameters alone; without it they are nested dicts of
        numpy arrays.
      step: restore from the checkpoint of this step only.

    Raises:
      UserError: if there is no checkpoint, or no such EMA; it names those that exist.
    """

    def read(folder: Path, leaves: dict[str, dict]) -> Any:
        names = sorted({path.split("/")[1] for path in leaves if path.startswith("ema/")})
        if which is not None and which not in names:
            raise unknown("EMA", which, names or ["none: this run keeps no EMAs"])
        prefix = "params/" if which is None else f"ema/{which}/"
        stored = {path: leaf for path, leaf in leaves.items() if path.startswith(prefix)}
        if template is None:
            shapes = {path: verification.shape_of(leaf) for path, leaf in stored.items()}
            found = verification.read_leaves(folder, stored, shapes)
            return _nest({path.removeprefix(prefix): value for path, value in found.items()})
        wanted = {prefix + path: leaf for path, leaf in leaves_by_path(template).items()}
        verification.check_model(folder, stored, wanted)
        return _unflatten(template, verification.read_leaves(folder, stored, wanted))

    restored = _newest(Path(directory).absolute(), step, read)
    if restored is None:
        raise UserError(
            f"there is no checkpoint in '{directory}'; train first, or give the folder of a "
            "trained run"
        )
    return restored


def _newest(
    directory: Path,
    step: int | None,
    read: Callable[[Path, dict[str, dict]], Any],
    multiple_of: int = 1,
) -> Restored | None:
    """Read the newest whole checkpoint by the function `read`; see `restore`.

    A run that trains in this folder removes old checkpoints while they are read here. One that is
    gone is not damaged: the folder is listed again, for as long as newer checkpoints appear.
    """
    damaged: set[int] = set()  # each is reported once
    while True:
        candidates = _candidates(directory, step, multiple_of)
        untried = [each for each in candidates if each not in damaged]
        if not untried:
            return None
        newest, *others = untried
        folder = directory / str(newest)
        try:
            body = verification.read_body(folder)
            return Restored(read(folder, body["leaves"]), newest, body["extra"])
        except DamagedCheckpoint as damage:
            time.sleep(0.2)  # its removal may be in progress
            if distributed.anywhere(not folder.exists()):
                continue
            damaged.add(newest)
            if not others:
                count = len(damaged)
                which = "the checkpoint" if count == 1 else f"each of the {count} checkpoints"
                raise UserError(
                    f"{which} in '{directory}' is damaged (step {newest}: {damage}); restore a "
                    "copy, or train into a new folder"
                ) from damage
            print(
                f"warning: checkpoint '{folder}' is damaged ({damage}); trying that of step "
                f"{others[0]}",
                file=sys.stderr,
            )


def _candidates(directory: Path, step: int | None, multiple_of: int) -> list[int]:
    """The steps from which to restore, newest first; UserError if `step` is not among them."""
    found = steps(directory)
    suitable = [each for each in found if each % multiple_of == 0] or found
    if step is None:
        return suitable[::-1]
    if step not in suitable:
        available = ", ".join(map(str, suitable)) or "none"
        raise UserError(
            f"there is no checkpoint of step {step} in '{directory}'; there are: {available}"
        )
    return [step]


def steps(directory: Path) -> list[int]:
    """List the steps of the checkpoints in a folder, ascending, damaged ones among them.

    Args:
      directory: the folder of the checkpoints, which need not exist.
    """
    if not directory.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in directory.iterdir()
        if entry.name.isdecimal() and entry.is_dir()
    )


def _unflatten(template: Any, leaves: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(template), list(leaves.values()))


def _nest(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree
