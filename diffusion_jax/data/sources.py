"""Sources: random access to examples. source[i] -> {'image', 'label'}; source.rows(indices) -> the
same, stacked.

An image is (H, W, C) uint8 (a point of a 2-D toy: (2,) float32), a label an int32 scalar, absent
where there is none. Where captions were asked for there is also 'caption' (captions.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

# bytes: a split below this is decoded once and kept; a larger one is read batch by batch
MEMORY = 1_000_000_000
Example = dict[str, Any]


class Source(Protocol):
    """Random access to examples, one at a time or many at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


class Arrays:
    """A split in memory. image: (N, ...); label: (N,) or None; caption: (N, K), see captions.py, or
    None.
    """

    def __init__(
        self, image: np.ndarray, label: np.ndarray | None = None, caption: np.ndarray | None = None
    ):
        numbers = {
            name: np.asarray(x, np.int32)
            for name, x in (("label", label), ("caption", caption))
            if x is not None
        }
        self.columns = {"image": image} | numbers

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None without labels."""
        return self.columns.get("label")

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, i: int) -> Example:
        return {k: v[i] for k, v in self.columns.items()}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {k: v[indices] for k, v in self.columns.items()}


class Lazy:
    """A split that is read when asked: example(i) for i in 0..size-1, by threads (decoders release
    Python's lock).

    labels: those of all examples (N,), where they are known without reading the examples.
    """

    def __init__(
        self, size: int, example: Callable[[int], Example], labels: np.ndarray | None = None
    ):
        self.size, self.example, self.labels = size, example, labels

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Example:
        if not -self.size <= i < self.size:
            raise IndexError(f"example {i} of {self.size}")
        return self.example(int(i) % self.size)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        examples = parallel(self.example, [int(i) for i in indices])
        return {k: np.stack([e[k] for e in examples]) for k in examples[0]}


_reading = (
    threading.RLock()
)  # of all caches, as a source with a lock of its own could not be sent to a data worker


class Cached:
    """A small split that is read whole at the first use and served from memory ever after."""

    def __init__(self, source: Source):
        self.source, self.memory = source, None

    def _loaded(self) -> Arrays:
        with _reading:
            if self.memory is None:
                columns = self.source.rows(np.arange(len(self.source)))
                self.memory, self.source = Arrays(**columns), None
            return self.memory

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where there are none or they are not known yet."""
        return labels_of(self.memory or self.source)

    def some(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As `rows`, but without reading the others."""
        return (self.memory or self.source).rows(indices)

    def __len__(self) -> int:
        return len(self.memory or self.source)

    def __getitem__(self, i: int) -> Example:
        return self._loaded()[i]

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._loaded().rows(indices)


class Relabeled:
    """A source whose label k is called table[k]."""

    def __init__(self, source: Source, table: np.ndarray):
        self.source, self.table = source, np.asarray(table, np.int32)

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where they are not known."""
        own = labels_of(self.source)
        return None if own is None else self.table[own]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        example = self.source[i]
        return example | {"label": self.table[example["label"]]}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        columns = self.source.rows(indices)
        return columns | {"label": self.table[columns["label"]]}


def labels_of(source: Source) -> np.ndarray | None:
    """The labels of all examples (N,) where they are known without reading the images; else None."""
    return getattr(source, "labels", None)


def some(source: Source, count: int) -> dict[str, np.ndarray]:
    """Up to `count` rows, evenly spread over a source, without keeping the others in memory."""
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    return source.some(indices) if isinstance(source, Cached) else source.rows(indices)


def parallel(function: Callable, items: list) -> list:
    """[function(item) for item in items] by a few threads, in order; the first exception surfaces."""
    workers = min(16, os.cpu_count() or 1, len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        chunks = [items[k::workers] for k in range(workers)]
        done = list(pool.map(lambda chunk: [function(item) for item in chunk], chunks))
    out = [None] * len(items)
    for k, results in enumerate(done):
        out[k::workers] = results
    return out


def held_in_memory(size: int, image_shape: tuple[int, ...]) -> bool:
    """Is a uint8 split of this size small enough to be kept decoded?"""
    return size * int(np.prod(image_shape)) < MEMORY


def mapped(
    source: Source, transform: Callable[[Example], Example], image_shape: tuple[int, ...]
) -> Source:
    """The source with every example transformed, kept in memory if it is small."""
    lazy = Lazy(len(source), lambda i: transform(source[i]), labels_of(source))
    return Cached(lazy) if held_in_memory(len(source), image_shape) else lazy
