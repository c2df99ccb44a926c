"""How Orbax writes and reads the two items of a checkpoint: 'state' and 'meta'.

Orbax writes and reads all leaves at once and raises as soon as one of them fails. It then closes
the event loop in which the others still run, and each of those prints a traceback of its own. The
handlers of leaves in this module wait for all leaves before they raise, so that a full disk or a
damaged file is one error.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import re
import stat
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion_jax.core.types import Array

_Info = ocp.type_handlers.ParamInfo


class _HostLeaves(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, which waits for all leaves before it raises.

    `_background_serialize` writes the leaves in Orbax's own thread. Should Orbax rename it, failed
    saves print more than one error, and nothing else changes.
    """

    async def _background_serialize(
        self, values: Sequence[np.ndarray], infos: Sequence[_Info], args: Sequence | None = None
    ) -> None:
        args = args or [ocp.SaveArgs()] * len(infos)
        await _all_finished(super()._background_serialize, values, infos, args)

    async def deserialize(
        self, infos: Sequence[_Info], args: Sequence | None = None
    ) -> list[np.ndarray]:
        args = args or [ocp.RestoreArgs()] * len(infos)
        parts = await _all_finished(super().deserialize, infos, args)
        return list(itertools.chain.from_iterable(parts))


class _DeviceLeaves(ocp.type_handlers.ArrayHandler):
    """Orbax's handler of JAX arrays, which waits for all leaves before it raises."""

    async def deserialize(
        self, infos: Sequence[_Info], args: Sequence | None = None
    ) -> list[Array]:
        args = args or [ocp.ArrayRestoreArgs()] * len(infos)
        parts = await _all_finished(super().deserialize, infos, args)
        return list(itertools.chain.from_iterable(parts))


async def _all_finished(call: Callable[..., Coroutine], *columns: Sequence) -> list:
    """The results of call([a], [b], ...) for every row of the columns, all of them at once.

    Raises:
      The first error, once every call has ended.
    """
    calls = [call(*([item] for item in row)) for row in zip(*columns, strict=True)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def open_manager(
    directory: Path, *, keep: int | None, keep_every: int | None, alone: bool = False
) -> ocp.CheckpointManager:
    """Orbax's manager of a folder of checkpoints, which also removes old ones.

    Args:
      directory: the folder.
      keep: how many of the latest checkpoints to keep; None keeps all.
      keep_every: checkpoints at multiples of this step are kept for good.
      alone: whether this process of several is the only one that writes.
    """
    several = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index() if alone else 0,
        active_processes={jax.process_index()} if alone else None,
        barrier_sync_key_prefix="alone" if alone else None,
    )
    _silence_orbax_log()
    return ocp.CheckpointManager(
        _readable(directory),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            create=False,
            multiprocessing_options=several,
        ),
        item_handlers=_item_handlers(ocp.type_handlers.get_type_handler(jax.Array)),
    )


def save(manager: ocp.CheckpointManager, step: int, arrays: dict[str, Any], meta: dict) -> bool:
    """Start to save the leaves of a state and the description of a checkpoint.

    Args:
      manager: the manager of the folder of the checkpoints.
      step: number of training steps, which names the checkpoint.
      arrays: the leaves of the state by their paths.
      meta: the JSON description of the checkpoint.

    Returns:
      False if the manager refused the step, because the same or a later one exists.
    """
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta))
    return manager.save(step, args=items)


def read_meta(folder: Path) -> Any:
    """Read the JSON data of the item 'meta' of one checkpoint; see `_read` for errors.

    Args:
      folder: the folder of the checkpoint, DIR/STEP.
    """
    return _read(folder, meta=ocp.args.JsonRestore())["meta"]


def read_state(folder: Path, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The leaves of the item 'state' of one checkpoint, by path; see `_read` for errors.

    Args:
      folder: the folder of the checkpoint.
      shapes: the leaves to read. With a sharding they are read straight into their shards,
        without one they are numpy arrays.
    """
    item = ocp.args.PyTreeRestore(
        item=shapes,
        restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
        partial_restore=True,
    )
    return _read(folder, state=item)["state"]


def _read(folder: Path, **items: Any) -> Any:
    """Items of one checkpoint.

    Raises:
      Exception: Orbax, tensorstore and json raise a dozen types for files that are broken.
    """
    _silence_orbax_log()
    _check_regular_files(folder)
    handler = ocp.CompositeCheckpointHandler(**_item_handlers(_DeviceLeaves()))
    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        return checkpointer.restore(
            _readable(folder.parent) / folder.name, args=ocp.args.Composite(**items)
        )


def _item_handlers(device_leaves: ocp.type_handlers.TypeHandler) -> dict[str, Any]:
    # a run of one process saves copies of its own (checkpoint.py), which need not be copied again
    host_leaves = _HostLeaves(deepcopy_host_arrays=jax.process_count() > 1)
    leaves = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, host_leaves), (jax.Array, device_leaves)
    )
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=leaves),
        "meta": ocp.JsonCheckpointHandler(),
    }


def reason(error: BaseException) -> str:
    """Say in one line why a save or a read failed.

    It is the message of the operating system ('No space left on device') where the error contains
    one, and otherwise the type of the error and its first line.

    Args:
      error: an error of the operating system, of Orbax or of tensorstore.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):  # as tensorstore writes it
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:120]}"


def _check_regular_files(folder: Path) -> None:
    """Raise OSError for a checkpoint with a pipe or a device, from which Orbax would wait."""
    for parent, _, files in os.walk(folder):
        for name in files:
            if not stat.S_ISREG(os.stat(os.path.join(parent, name)).st_mode):
                raise OSError(f"{name} is not a regular file")


def _readable(directory: Path) -> Path:
    """The folder under a name in UTF-8, the only encoding that tensorstore accepts.

    On Linux every open folder has such a name.
    """
    try:
        os.fspath(directory).encode()
        return directory
    except UnicodeEncodeError:
        return Path(f"/proc/self/fd/{_descriptor(os.fsencode(directory))}")


@functools.cache
def _descriptor(directory: bytes) -> int:
    """An open descriptor of the folder, for as long as the process runs."""
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def _silence_orbax_log() -> None:
    """Keep Orbax out of absl's log; its exceptions say what matters."""
    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
