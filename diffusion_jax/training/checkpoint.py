"""Checkpoints by Orbax: asynchronous, atomic and verified; the latest, some for good, and the best.

A checkpoint DIR/STEP holds two items: 'state', the leaves of the TrainState under their paths
('params/Dense_0/kernel'), and 'meta', JSON that describes them (verification.py). Orbax writes both
into a temporary folder and renames it, so a process that is killed at any moment leaves either the
whole checkpoint or none.

A save keeps the training waiting only while the state is copied to the host: digests and files are
made from the copy, in a thread. (In a run of several processes only the files are, because the
digests need leaves that all processes gather at once.)

Where the workdir is in an object store, the processes have no common folder: all of them gather the
leaves, the first one alone writes them, and the same thread then sends the checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.core import staging
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.training import distributed, restoring, sharding, storage, verification
from diffusion_jax.training.placement import leaves_by_path
from diffusion_jax.training.verification import DamagedCheckpoint

_SAVING = threading.Lock()  # one save at a time: Orbax is not made for two writers in one process
_FILES_OF: list[Checkpointer] = []  # of several processes: whose files a thread of Orbax writes


class Checkpointer:
    """The checkpoints of one run: saves in the background, removes old ones, restores the newest.

    Attributes:
      directory: the folder of the checkpoints.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int | None = 3,
        keep_every: int | None = None,
        restored_step: int | None = None,
        delete_newer: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the folder for writing; what a killed save left in it is removed.

        Args:
          directory: the folder, which is created if it is missing.
          keep: how many of the latest checkpoints to keep; None keeps all.
          keep_every: checkpoints at multiples of this step are kept for good.
          restored_step: the step from which the run resumes; None for a fresh start. Newer
            checkpoints are damaged ones that `restore` passed over; they are renamed STEP.damaged,
            so that their steps can be saved again.
          delete_newer: delete newer checkpoints instead, because the run takes another course.
          check: called when a save begins, and again in the background thread right before it
            writes; what it raises is raised as if the save had failed.

        Raises:
          UserError: if the folder cannot be written.
        """
        self.directory = Path(directory).absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0 or staging.of(self.directory):
                _clear_newer(self.directory, restored_step, delete_newer)
                _remove_unfinished(self.directory)
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to '{self.directory}': {error.strerror}"
            ) from error
        several, staged = jax.process_count() > 1, staging.of(self.directory) is not None
        self._alone, self._gathers = not several or staged, several and staged
        self._manager = None
        if not (self._gathers and jax.process_index()):
            self._manager = storage.open_manager(
                self.directory, keep=keep, keep_every=keep_every, alone=self._gathers
            )
        self._check = check
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Start to save a state; returns when its arrays may be donated or changed.

        Args:
          step: the step of the state.
          state: a pytree of arrays.
          extra: JSON data to save with it.

        Raises:
          UserError: if the previous save failed.
        """
        self.wait()
        self._check()
        leaves = leaves_by_path(state)
        described, arrays = verification.describe(leaves), verification.stored_arrays(leaves)
        if self._alone:
            arrays = _copies(arrays, self._manager is not None)
            if self._manager is None:
                return
            self._pending = self._pool.submit(self._write, step, described, arrays, extra)
        else:
            # two writers would meet at the same barriers, those of best and of newest checkpoints
            while _FILES_OF:
                _FILES_OF.pop().wait()
            self._write(step, described, arrays, extra)
            _FILES_OF.append(self)

    def restore(
        self, template: Any, *, step: int | None = None, multiple_of: int = 1
    ) -> restoring.Restored | None:
        """Restore the newest whole checkpoint; see `restoring.restore`.

        Args:
          template: a tree of arrays, or of ShapeDtypeStructs with shardings, of the state.
          step: restore the checkpoint of this step only.
          multiple_of: consider only checkpoints at multiples of this step, if there are any.
        """
        return restoring.restore(self.directory, template, step=step, multiple_of=multiple_of)

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return restoring.latest_step(self.directory)

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          UserError: if it failed.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
        if not self._alone:
            with _one_error(self.directory, self._manager.latest_step()):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save, as `wait` does, and release Orbax's threads."""
        try:
            self.wait()
        finally:
            _FILES_OF[:] = [other for other in _FILES_OF if other is not self]
            self._pool.shutdown()
            if self._manager is not None:
                with contextlib.suppress(Exception):  # Orbax raises again what `wait` has raised
                    self._manager.close()

    def _write(
        self, step: int, described: dict[str, dict], arrays: dict, extra: Mapping | None
    ) -> None:
        with _SAVING, _one_error(self.directory, step):
            meta = verification.make_meta(step, described, arrays, dict(extra or {}))
            self._check()
            if not storage.save(self._manager, step, arrays, meta):
                raise UserError(
                    f"step {step} was not saved to '{self.directory}': a checkpoint of the same "
                    "or a later step exists there"
                )
            if self._alone:
                self._manager.wait_until_finished()
                self._check()
                staging.push(self.directory)


def keep_best(
    hook: Callable[[Any, int], Mapping[str, Any]], metric: str, checkpointer: Checkpointer
) -> Callable[[Any, int], Mapping[str, Any]]:
    """A hook of the training loop that also saves the state with the smallest value of a metric.

    The smallest value so far is read from the saved checkpoint, so that it outlives the process.

    Args:
      hook: (state, step) -> a row of numbers.
      metric: the key of the number in that row.
      checkpointer: that of a folder of its own, with keep=1 and delete_newer=True, because what
        comes after the restored step is computed again.

    Returns:
      The hook; it raises UserError if the row has no such number.
    """
    least = math.inf
    if (step := checkpointer.latest()) is not None:
        with contextlib.suppress(DamagedCheckpoint):
            body = verification.read_body(checkpointer.directory / str(step))
            saved = body["extra"].get(metric)
            least = saved if isinstance(saved, float) else math.inf

    def run(state: Any, step: int) -> Mapping[str, Any]:
        nonlocal least
        row = hook(state, step)
        if not isinstance(row.get(metric), float):
            numbers = [key for key, value in row.items() if isinstance(value, float)]
            raise unknown("number for the best checkpoint", metric, numbers)
        if row[metric] < least:
            least = row[metric]
            checkpointer.save(step, state, {metric: least})
        return row

    return run


def _clear_newer(directory: Path, restored_step: int | None, delete: bool) -> None:
    """Rename or delete the checkpoints that are newer than the restored one."""
    for step in restoring.steps(directory):
        if restored_step is not None and step <= restored_step:
            continue
        folder, number = directory / str(step), 0
        if delete:
            shutil.rmtree(folder)
            continue
        while (target := directory / f"{step}.damaged{f'.{number}' * (number > 0)}").exists():
            number += 1
        folder.rename(target)


def _remove_unfinished(directory: Path) -> None:
    """Remove what Orbax had not finished when its process was killed or the disk was full."""
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _one_error(directory: Path, step: int | None) -> Iterator[None]:
    """Turn what Orbax and tensorstore raise, such as for a full disk, into a UserError.

    The files of the failed save are removed. In a run of several processes, an error which means
    that another one is gone stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a dozen types, see verification.py
        if jax.process_index() == 0:
            _remove_unfinished(directory)
        if distributed.lost(error):  # the command reports it, and ends as unfinished
            raise
        raise UserError(
            f"the checkpoint of step {step} could not be saved to '{directory}': "
            f"{storage.reason(error)}; running the same command again resumes training from the "
            "checkpoint before it"
        ) from error


def _copies(arrays: dict[str, Any], keep: bool) -> dict[str, np.ndarray]:
    """Copies on the host, in memory of their own: the next step overwrites the devices' memory.

    Several processes gather each leaf in the same order; those that do not `keep` it drop it.
    """
    if jax.process_count() > 1:
        whole = ((path, sharding.fetch(array)) for path, array in arrays.items())
        return {path: np.array(array) for path, array in whole if keep}
    for array in arrays.values():
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    return {path: np.array(array) for path, array in arrays.items()}
