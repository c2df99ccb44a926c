"""From a source to batches: a pure function of (seed, step), shuffled, sharded and prefetched.

The order is that of order.py. grain's own shuffle walks the cycles of a 65,536-element cipher index
by index (about 0.3 us x 65536 / N each: 30 us for the digits, 10 ms for a set of two), so what its
workers map over are steps, not examples. As batch(step) is a pure function it can be computed
anywhere: `prefetch` does it in a thread, or in processes of their own (grain's workers), with the
same result.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import aspect, order, transforms
from diffusion_jax.data.aspect import Bucketed
from diffusion_jax.data.captions import CaptionedSource
from diffusion_jax.data.latents import Latents
from diffusion_jax.data.sources import Source

grain = deferred("grain")

FLIPPED = ("image", "dense")  # columns that are mirrored


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int = 0,
    flip: bool = False,
    balanced: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    rows: np.ndarray | None = None,
) -> Callable[[int], dict[str, np.ndarray]]:
    """Return the function batch(step) of a source.

    Step s of process p holds positions [s G + p G/n, s G + (p + 1) G/n) of the endless global order
    (G = batch_size, n = process_count), `order.uniform` or `order.balanced`: the rows of the
    processes, in order, are the batch of one process. A batch may be larger than the set. Of
    several captions of an example one is drawn for each example and epoch.

    Args:
      source: the examples.
      batch_size: examples in the global batch, a positive multiple of process_count.
      seed: the seed of the order, the mirroring and the choice of captions.
      flip: whether each image is mirrored with probability 1/2, drawn by example and epoch.
      balanced: whether all classes are equally frequent, instead of all examples.
      process_index: the number of this process.
      process_count: the number of processes.
      rows: the positions in the batch of this process, where a mesh decides (`Runner.rows`).

    Returns:
      batch(step) -> {'image': (b, H, W, C) float32 in [-1, 1], 'label': (b,) int32, ...}, where b =
      batch_size / process_count; 'label' is absent where the set has none, and conditioning inputs
      are there where the source is a `captions.CaptionedSource`.

    Raises:
      UserError: for sizes and seeds that are not allowed, for data that cannot be mirrored, and
        for balanced classes without labels or in buckets of several shapes.
    """
    held = _held(batch_size, process_index, process_count) if rows is None else rows
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative")
    if flip:
        _check_flip(source)
    if isinstance(source, Bucketed):
        _check_not_balanced(balanced)
        return _by_bucket(source, batch_size=batch_size, seed=seed, flip=flip, rows=held)
    labels = order.known_labels(source, "data.class_balanced=True") if balanced else None
    chosen = order.balanced(labels, seed) if balanced else order.uniform(len(source), seed)

    def read(choice: order.Chosen) -> dict[str, np.ndarray]:
        index, mirrored, phrase = choice
        if flip and isinstance(source, Latents):
            return source.rows(index, mirrored)
        batch = _rows(source, index, phrase)
        for name in FLIPPED if flip else ():
            if name in batch:
                batch[name][mirrored] = batch[name][mirrored][:, :, ::-1]
        return batch

    return lambda step: network_types(read(chosen(step * batch_size + held)))


def _by_bucket(source: Bucketed, **options: Any) -> Callable[[int], dict[str, np.ndarray]]:
    """batch(step) of one bucket each, which is drawn for the step."""
    each = [batches(own, **options) for own in source.buckets]
    sizes, seed = tuple(map(len, source.buckets)), options["seed"]

    def batch(step: int) -> dict[str, np.ndarray]:
        bucket, visit = aspect.visit(seed, sizes, step)
        return each[bucket](visit)

    return batch


def _check_not_balanced(balanced: bool) -> None:
    """Refuse equally frequent classes of images in buckets."""
    if balanced:
        raise UserError(
            "config.data.class_balanced=True: the images of a bucket are drawn by their shape; "
            "set --config.data.buckets=() or --config.data.class_balanced=False"
        )


def _check_flip(source: Source) -> None:
    """Refuse data that cannot be mirrored."""
    example = source[0]
    if example["image"].ndim != 3:
        raise UserError("data.flip=True mirrors images, and this data set has none")
    if "std" in example and not getattr(source, "flipped", None):
        why = "a mirrored latent is not the latent of a mirrored image"
        raise UserError(
            f"data.flip=True mirrors images, and {why}; encode the images again with "
            "experiments.encode --flips, or set data.flip=False"
        )


def _rows(source: Source, index: np.ndarray, phrase: np.ndarray) -> dict[str, np.ndarray]:
    """Read examples, with conditioning inputs of their captions if the source has any."""
    batch = source.rows(index)
    return source.with_captions(batch, phrase) if isinstance(source, CaptionedSource) else batch


def network_types(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the images of some examples to what networks take, float32 in [-1, 1].

    Args:
      batch: rows of a source.
    """
    return batch | {"image": transforms.to_float(batch["image"])}


def _held(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """Return the positions in a batch that a process holds: an equal share, in order."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"data.batch_size={batch_size} must be a positive multiple of the number of processes, "
            f"{process_count}"
        )
    return np.arange(batch_size).reshape(process_count, -1)[process_index]


def prefetch(
    batch: Callable[[int], Any],
    start: int,
    stop: int | None = None,
    *,
    depth: int = 2,
    put: Callable[[Any], Any] = lambda b: b,
    workers: int = 0,
) -> Iterator[tuple[int, Any]]:
    """Yield (step, put(batch(step))) from `start` on, computed ahead in a daemon thread.

    Steps and values do not depend on the number of workers. An exception in the thread or a worker
    is raised here, at its step. Closing the iterator (or dropping it) ends thread and workers.

    Args:
      batch: a pure function of the step.
      start: the first step.
      stop: the step after the last one; None never ends.
      depth: how many batches are computed ahead.
      put: applied to each batch in the thread.
      workers: processes that compute batch(step), each up to `depth` of its own ahead, where
        reading or decoding is too much for a thread next to the training. They are spawned, so a
        script needs `if __name__ == "__main__":`, and each has its own copy of what batch holds.

    Raises:
      UserError: if a worker dies.
    """
    ready: queue.Queue = queue.Queue(maxsize=max(1, depth))
    closed = threading.Event()
    if workers:
        made = _in_processes(batch, start, stop, depth, workers)
    else:
        made = map(batch, itertools.count(start))

    def work() -> None:
        step = start
        while not closed.is_set() and (stop is None or step < stop):
            try:
                item = (step, put(next(made)))
            except BaseException as error:  # whatever it is, it is raised in the consumer
                return _offer(ready, (None, error), closed)
            _offer(ready, item, closed)
            step += 1
        _offer(ready, (None, None), closed)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            step, item = ready.get()
            if step is None:
                if item is None:
                    return
                raise item
            yield step, item
    finally:
        closed.set()
        thread.join(timeout=5)  # a batch that hangs, on a dead file server, must not hang the exit
        if workers:
            made.close()


def _offer(ready: queue.Queue, item: Any, closed: threading.Event) -> None:
    """Put an item into a queue, unless the queue is closed before there is a place."""
    while not closed.is_set():
        try:
            return ready.put(item, timeout=0.05)
        except queue.Full:
            pass


def _in_processes(
    batch: Callable[[int], Any], start: int, stop: int | None, depth: int, workers: int
) -> Iterator[Any]:
    """Yield batch(start), batch(start + 1), ... by grain's workers; each makes every n-th."""
    # grain reads flags of its own, also where no main has parsed a command line
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(start, sys.maxsize if stop is None else stop).map(batch)
    ahead = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    ).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=depth),
        worker_init_fn=_serve,
    )
    iterator = iter(ahead)
    try:
        for step in itertools.count(start):
            try:
                made = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                raise UserError(
                    f"a data worker died before step {step} ({str(error).split('. ')[0]}); if "
                    f"memory is short, use fewer than data.workers={workers} (0: none); running "
                    "the same command again resumes from the last checkpoint"
                ) from None
            # out of the shared memory, which jax on a CPU would otherwise hold on to instead of
            # copying
            yield jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, made)
    finally:
        iterator.close()


def _serve(index: int, count: int) -> None:
    """Prepare a worker: Ctrl-C is left to the parent, and the worker ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def arrays(source: Source, limit: int | None = None) -> dict[str, np.ndarray]:
    """Return the first examples of a split, in order and stacked.

    Args:
      source: the split.
      limit: number of examples, at most; None reads all of them.

    Returns:
      {'image': (N, H, W, C) uint8, 'label': (N,) int32, ...}.
    """
    size = len(source) if limit is None else min(limit, len(source))
    return source.rows(np.arange(size))


def sequential(
    source: Source,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a split once, in order, as batches like those of `batches`, for the held-out loss.

    Every batch is full, so that one compiled function serves all: the examples beyond the last full
    batch are left out, and a split smaller than one batch is repeated to fill it. Of several
    captions the first is taken.

    Args:
      source: the examples.
      batch_size: examples in the global batch.
      process_index: the number of this process.
      process_count: the number of processes.
      rows: the positions in the batch that this process holds; see `batches`.
    """
    held = _held(batch_size, process_index, process_count) if rows is None else rows
    for first in range(0, max(len(source) - batch_size, 0) + 1, batch_size):
        index = first + held
        yield network_types(_rows(source, index % len(source), np.zeros(len(index), np.int32)))
