"""Checkpoints by Orbax: asynchronous, atomic, the last few, some for good and the best kept, and
verified.

A checkpoint DIR/STEP holds two items: 'state', the leaves of the TrainState under their paths
('params/Dense_0/kernel'), and 'meta', JSON with each leaf's shape, dtype and sha256, the caller's
`extra`, and a sha256 of itself. Orbax alone restores a flipped byte, or another dtype, without a
word; here every leaf is compared with its digest before anybody sees it.

A save keeps the training waiting only while the state is copied to the host: digests and files are
made from the copy, in a thread. (In a run of several processes, where digests need leaves gathered
by all of them at once, only the files are.)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint

from diffusion_jax import reading
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.training import distributed
from diffusion_jax.training.sharding import fetch, path_name


class Checkpointer(NamedTuple):
    """save(step, state, extra) returns when the state may be donated; wait(): until it is on disk;
    close().
    """

    directory: Path
    save: Callable[..., None]
    wait: Callable[[], None]
    close: Callable[[], None]


class Restored(NamedTuple):
    """What a checkpoint gives back: the state (or the parameters asked for), its step, and the JSON
    saved beside it.
    """

    state: Any
    step: int
    extra: dict[str, Any]


_WRITING = (
    threading.Lock()
)  # one save at a time: Orbax and `_settling_loops` are not made for two threads


# of the description of a checkpoint: what is saved beside it (`extra`) holds what the training loop
# and its rollbacks go on from
_ROLLBACK = reading.record(
    {
        "to": reading.optional(reading.integer()),
        "tries": reading.integer(),
        "shift": reading.integer(),
    }
)

_LEAF = reading.record(
    {
        "shape": reading.items(reading.integer(0, 2**40), most=32),
        "dtype": reading.text(1, 100),
        "sha256": reading.text(64, 64),
    }
)

_BODY = reading.record(
    {
        "step": reading.integer(),
        "leaves": reading.table(_LEAF),
        "extra": reading.record(
            {},
            {
                "rollback": _ROLLBACK,
                "in_a_row": reading.integer(),
                "tally": reading.optional(reading.table()),
            },
        ),
    }
)


class _Damaged(Exception):
    """This checkpoint cannot be trusted; the reason."""


def open_checkpoints(
    directory: str | os.PathLike,
    *,
    keep: int | None = 3,
    keep_every: int | None = None,
    after: int | None = None,
    aside: str | None = "damaged",
    before: Callable[[], None] = lambda: None,
) -> Checkpointer:
    """A writer of checkpoints. keep: the last so many stay (None: all), besides those at multiples
    of keep_every.

    after: the step that was restored (None: a fresh start). Newer checkpoints are the damaged ones
    that restore passed over; they are renamed STEP.damaged, so that their steps can be saved again.
    aside=None: they are of another course, and are removed. What a killed save left is removed,
    too.
    before: called in the thread that writes a checkpoint, right before it does; what it raises is
    raised as if the save failed. Raises UserError if the directory cannot be written; a save that
    failed raises it, too, at the next save, wait or close.
    """
    ocp = _orbax()
    directory = Path(directory).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            for step in _steps(directory):
                if after is None or step > after:
                    _set_aside(directory / str(step), aside) if aside else shutil.rmtree(
                        directory / str(step)
                    )
            _remove_unfinished(directory)
    except OSError as error:
        raise UserError(f"cannot write checkpoints to '{directory}': {error.strerror}") from error
    manager = ocp.CheckpointManager(
        _readable(directory),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every or None),
    )
    alone = jax.process_count() == 1
    pool, pending = ThreadPoolExecutor(1, "checkpoint"), _nothing()

    def write(
        step: int, described: dict[str, dict], arrays: dict[str, Any], extra: dict[str, Any]
    ) -> None:
        with _WRITING, _one_line(directory, step), _settling_loops():
            leaves = {
                path: described[path] | {"sha256": digest}
                for path, digest in _digests(arrays).items()
            }
            body = {"step": step, "leaves": leaves, "extra": extra}
            meta = {"body": body, "sha256": _text_digest(body)}
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
            )
            before()
            if not manager.save(step, args=items):
                raise UserError(
                    f"step {step} was not saved to '{directory}': one of the same or a later step is there"
                )
            if alone:
                manager.wait_until_finished()

    def save(step: int, state: Any, extra: dict[str, Any] | None = None) -> None:
        nonlocal pending
        wait()
        leaves = _leaves(state)
        described, arrays = _describe(leaves), _raw(leaves)
        if alone:
            pending = pool.submit(write, step, described, _copies(arrays), dict(extra or {}))
        else:
            write(step, described, arrays, dict(extra or {}))

    def wait() -> None:
        nonlocal pending
        done, pending = pending, _nothing()
        done.result()
        if not alone:
            with _one_line(directory, manager.latest_step()):
                manager.wait_until_finished()

    def close() -> None:
        try:
            wait()
        finally:
            pool.shutdown()
            with contextlib.suppress(Exception):  # Orbax says again what wait has said
                manager.close()

    return Checkpointer(directory, save, wait, close)


def keep_best(
    hook: Callable[[Any, int], Mapping[str, Any]], metric: str, checkpointer: Checkpointer
) -> Callable[[Any, int], Mapping[str, Any]]:
    """The hook of a training loop, which now also saves the state where its row's `metric` is the
    smallest so far.

    checkpointer: of a folder of its own, with keep=1 and aside=None: what comes after the restored
    step comes again. The smallest so far is read from there, so that it outlives the process.
    Raises UserError if the row has no such number.
    """
    least = math.inf
    with contextlib.suppress(_Damaged):
        for step in _steps(checkpointer.directory)[-1:]:
            kept = _read_meta(checkpointer.directory / str(step))["extra"].get(metric)
            least = kept if isinstance(kept, float) else math.inf

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


def latest_step(directory: str | os.PathLike) -> int | None:
    """The newest checkpoint's step, damaged or not; None if there is none."""
    return max(_steps(Path(directory)), default=None)


def restore(
    directory: str | os.PathLike, template: Any, *, step: int | None = None, multiple_of: int = 1
) -> Restored | None:
    """The newest checkpoint that is whole, or None where there is none at all; of the given step
    only, if given.

    multiple_of: only those at multiples of it, if there are any.

    template: a tree of arrays or of ShapeDtypeStructs with shardings (`Runner.template`); the
    devices need not be those it was saved from. A damaged checkpoint is passed over with one
    warning on stderr; nothing in the directory is changed. Raises UserError if all are damaged, or
    if the newest whole one is of another model (naming the first leaf that differs).
    """
    wanted = _leaves(template)

    def read(folder, body):
        _compare(folder, body["leaves"], wanted)
        return _unflatten(template, _read_leaves(folder, body["leaves"], wanted))

    return _newest(Path(directory).absolute(), step, read, multiple_of)


def restore_params(
    directory: str | os.PathLike,
    which: str | None = None,
    *,
    template: Any = None,
    step: int | None = None,
) -> Restored:
    """Only the parameters (which=None) or one of their EMAs (which='50k'), of the newest whole
    checkpoint.

    step: of that checkpoint only. template: as in `restore`, for the parameters alone; without it
    they come as nested dicts of numpy arrays. Raises UserError if there is no checkpoint, or no
    such EMA (naming those there are).
    """

    def read(folder, body):
        leaves = body["leaves"]
        names = sorted({path.split("/")[1] for path in leaves if path.startswith("ema/")})
        if which is not None and which not in names:
            raise unknown("EMA", which, names or ["none: this run keeps no EMAs"])
        prefix = "params/" if which is None else f"ema/{which}/"
        stored = {path: leaf for path, leaf in leaves.items() if path.startswith(prefix)}
        if template is None:
            found = _read_leaves(
                folder, stored, {path: _shape(leaf) for path, leaf in stored.items()}
            )
            return _nest({path.removeprefix(prefix): value for path, value in found.items()})
        wanted = {prefix + path: leaf for path, leaf in _leaves(template).items()}
        _compare(folder, stored, wanted)
        return _unflatten(template, _read_leaves(folder, stored, wanted))

    restored = _newest(Path(directory).absolute(), step, read)
    if restored is None:
        raise UserError(
            f"there is no checkpoint in '{directory}'; train first, or give the folder of a run that was trained"
        )
    return restored


def _newest(
    directory: Path, step: int | None, read: Callable[[Path, dict], Any], multiple_of: int = 1
) -> Restored | None:
    """What `read` makes of the newest checkpoint that is whole; see `restore`.

    A run that trains in this directory removes old checkpoints while they are read here. One that
    is gone is not
    damaged: the directory is listed again, for as long as newer checkpoints appear in it.
    """
    passed: set[int] = set()  # damaged ones, each warned of once
    while True:
        listed = _steps(directory)
        steps = [found for found in listed if found % multiple_of == 0] or listed
        if step is not None and step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in '{directory}'; there are: {', '.join(map(str, steps)) or 'none'}"
            )
        candidates = [
            found for found in ([step] if step is not None else steps[::-1]) if found not in passed
        ]
        if not candidates:
            return None
        candidate, rest = candidates[0], candidates[1:]
        folder = directory / str(candidate)
        try:
            body = _read_meta(folder)
            return Restored(read(folder, body), candidate, body["extra"])
        except _Damaged as damage:
            time.sleep(0.2)  # its removal may be under way
            if distributed.anywhere(not folder.exists()):
                continue
            passed.add(candidate)
            if not rest:
                count = (
                    "the checkpoint"
                    if len(passed) == 1
                    else f"each of the {len(passed)} checkpoints"
                )
                raise UserError(
                    f"{count} in '{directory}' is damaged (step {candidate}: {damage}); "
                    "restore a copy, or train into a new folder"
                ) from damage
            print(
                f"warning: checkpoint '{folder}' is damaged ({damage}); trying that of step {rest[0]}",
                file=sys.stderr,
            )


def _readable(directory: Path) -> Path:
    """The directory under a name in UTF-8, which is all that tensorstore takes: on Linux every open
    folder has one.
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


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in directory.iterdir()
        if entry.name.isdecimal() and entry.is_dir()
    )


def _set_aside(folder: Path, why: str) -> None:
    number = 0
    while (
        target := folder.with_name(f"{folder.name}.{why}" + (f".{number}" if number else ""))
    ).exists():
        number += 1
    folder.rename(target)


def _nothing() -> Future:
    """A save that is over."""
    done: Future = Future()
    done.set_result(None)
    return done


def _remove_unfinished(directory: Path) -> None:
    """What Orbax had not finished when its process was killed, or the disk was full: never looked
    at, but large.
    """
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _one_line(directory: Path, step: int | None) -> Iterator[None]:
    """What Orbax and tensorstore say at length when the disk is full or gone, as a UserError; the
    rest of the save removed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a dozen kinds, see _attempt
        if jax.process_index() == 0:
            _remove_unfinished(directory)
        raise UserError(
            f"the checkpoint of step {step} could not be saved to '{directory}': {_reason(error)}; "
            "the same command goes on from the one before"
        ) from error


def _reason(error: BaseException) -> str:
    """The system's own words ('No space left on device') where the error has them, else its first
    line.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:120]}"


def _read_meta(folder: Path) -> dict[str, Any]:
    ocp = _orbax()
    meta = _attempt(folder, meta=ocp.args.JsonRestore())["meta"]
    if not isinstance(meta, dict) or meta.get("sha256") != _text_digest(meta.get("body")):
        raise _Damaged("its description does not match its digest")
    try:
        _BODY(meta["body"], "")
    except reading.Mismatch as mismatch:
        raise _Damaged(f"its description is none: {mismatch}") from None
    return meta["body"]


def _read_leaves(folder: Path, stored: dict[str, dict], wanted: dict[str, Any]) -> dict[str, Any]:
    """The leaves at the paths of `wanted`, placed as it says, each compared with its digest."""
    ocp = _orbax()
    item = _raw(wanted, shapes_only=True)
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    item_of = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
    found = _attempt(folder, state=item_of)["state"]
    for path, digest in _digests(found).items():
        if digest != stored[path]["sha256"]:
            raise _Damaged(f"{path} does not match its digest")
    return {path: _wrapped(found[path], leaf) for path, leaf in wanted.items()}


def _attempt(folder: Path, **items) -> Any:
    ocp = _orbax()
    found, problem = None, ""
    with _settling_loops():
        try:
            _regular(folder)
            with contextlib.closing(
                ocp.Checkpointer(ocp.CompositeCheckpointHandler())
            ) as checkpointer:
                found = checkpointer.restore(
                    _readable(folder.parent) / folder.name, args=ocp.args.Composite(**items)
                )
        except (
            Exception
        ) as error:  # Orbax, tensorstore and json raise a dozen kinds for a broken file
            line = (str(error).strip() or "no message").splitlines()[0]
            problem = f"{type(error).__name__}: {line[:120]}"
    if distributed.anywhere(bool(problem)):  # all processes turn to the same checkpoint
        raise _Damaged(problem or "another process could not read it")
    return found


def _regular(folder: Path) -> None:
    """OSError where a checkpoint holds a pipe or a device, from which Orbax would wait for ever."""
    for parent, _, files in os.walk(folder):
        for name in files:
            if not stat.S_ISREG(os.stat(os.path.join(parent, name)).st_mode):
                raise OSError(f"{name} is not a regular file")


@contextlib.contextmanager
def _settling_loops() -> Iterator[None]:
    """Event loops made in this block finish their tasks before they close.

    At the first failed read or write Orbax closes its loop and abandons the others, each of which
    later prints a traceback of its own.
    """
    new_event_loop = asyncio.new_event_loop

    def settling() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        close = loop.close

        def settle_and_close():
            if tasks := asyncio.all_tasks(loop):
                loop.run_until_complete(asyncio.wait(tasks))
                [
                    task.exception() for task in tasks if not task.cancelled()
                ]  # seen, so not reported
            loop.call_soon_threadsafe = lambda *_, **__: (
                None
            )  # tensorstore may still tell of a read or write nobody waits for
            close()

        loop.close = settle_and_close
        return loop

    asyncio.new_event_loop = settling
    try:
        yield
    finally:
        asyncio.new_event_loop = new_event_loop


def _compare(folder: Path, stored: dict[str, dict], wanted: dict[str, Any]) -> None:
    """UserError, naming the first leaf that differs, unless paths, shapes and dtypes are the same."""
    have = {path: (tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in stored.items()}
    want = {path: (tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in _describe(wanted).items()}

    def say(leaf):
        return "missing" if leaf is None else f"{leaf[1]}{list(leaf[0])}"

    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            raise UserError(
                f"checkpoint '{folder}' is of another model: "
                f"{path} is {say(have.get(path))} there and {say(want.get(path))} here; "
                "use that run's config, or another folder"
            )


def _copies(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """On the host, in memory of their own: the next step overwrites the devices'."""
    for array in arrays.values():
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    return {path: np.array(array) for path, array in arrays.items()}


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


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


def _describe(leaves: dict[str, Any]) -> dict[str, dict]:
    return {path: {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in leaves.items()}


def _shape(leaf: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))


def _digests(leaves: dict[str, Any]) -> dict[str, str]:
    """sha256 of the bytes of each leaf; hashlib lets go of the interpreter, so threads help.

    Leaves are fetched one after the other, in this thread: processes that gather shards must do it
      in the same order.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(leaves, pool.map(_digest, map(fetch, leaves.values())), strict=True))


def _digest(leaf: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()


def _text_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaves: dict[str, Any], shapes_only: bool = False) -> dict[str, Any]:
    """The leaves as Orbax gets them: typed keys as their words (the dtype in 'meta' remembers the
    kind).
    """

    def raw(leaf):
        if not shapes_only:
            return jax.random.key_data(leaf) if _is_key(leaf) else leaf
        sharding = getattr(leaf, "sharding", None)
        shape = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return {path: raw(leaf) for path, leaf in leaves.items()}


def _wrapped(value: Any, leaf: Any) -> Any:
    """Words back to a typed key, of the kind and in the place of the template's leaf."""
    if not _is_key(leaf):
        return value
    kind = []
    jax.eval_shape(lambda key: kind.append(jax.random.key_impl(key)), leaf)
    key = jax.random.wrap_key_data(value, impl=kind[0])
    return key if getattr(leaf, "sharding", None) is None else jax.device_put(key, leaf.sharding)


def _orbax():
    """Orbax, imported when first needed (a second) and kept out of absl's log; its exceptions say
    what matters.
    """
    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)
    return orbax.checkpoint


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
