"""Sources: random access to examples.

source[i] is {'image', 'label'} and source.rows(indices) the same of several examples, stacked. An
image is uint8 (H, W, C), another array float32 (N_1, ..., N_d, C) and normalized, a point of a 2-D
toy float32 (2,), a label an int32 scalar, absent where there are none. Where captions were
requested there is also 'caption' (see captions.py), and where arrays condition the model
'condition' and 'dense' (see condition_arrays.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffusion_jax.data import normalization
from diffusion_jax.data.normalization import ConditionUnits, Normalization

# bytes: a smaller split is decoded once and kept, a larger one is read batch by batch
MEMORY = 1_000_000_000
Example = dict[str, Any]


class Source(Protocol):
    """Random access to examples, one at a time or many at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked.

        Args:
          indices: (K,), in any order and with repetitions.

        Returns:
          {'image': (K, ...), 'label': (K,), ...}.
        """
        ...


class Splits(NamedTuple):
    """Two disjoint sources of images or points; the attributes are those of `dataset.Dataset`."""

    train: Source
    test: Source
    image_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    captions: tuple[str, ...] = ()
    rule: str = ""
    normalization: Normalization | None = None
    units: ConditionUnits = ConditionUnits()


class Arrays:
    """A split in memory.

    Args:
      image: (N, ...).
      label: (N,), or None.
      caption: (N, K), see captions.py, or None.
      **more: further columns (N, ...).
    """

    def __init__(
        self,
        image: np.ndarray,
        label: np.ndarray | None = None,
        caption: np.ndarray | None = None,
        **more: np.ndarray,
    ) -> None:
        numbers = {
            name: np.asarray(x, np.int32)
            for name, x in (("label", label), ("caption", caption))
            if x is not None
        }
        self.columns = {"image": image} | numbers | more

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None without labels."""
        return self.columns.get("label")

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, i: int) -> Example:
        return {k: v[i] for k, v in self.columns.items()}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked."""
        return {k: v[indices] for k, v in self.columns.items()}


class Lazy:
    """A split whose examples are read when they are needed, by threads.

    Args:
      size: the number of examples.
      example: i -> example, for i in 0, ..., size - 1.
      labels: (N,), where they are known without reading the examples.
    """

    def __init__(
        self, size: int, example: Callable[[int], Example], labels: np.ndarray | None = None
    ) -> None:
        self.size, self.example, self.labels = size, example, labels

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Example:
        if not -self.size <= i < self.size:
            raise IndexError(f"example {i} of {self.size}")
        return self.example(int(i) % self.size)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked."""
        examples = parallel(self.example, [int(i) for i in indices])
        return {k: np.stack([e[k] for e in examples]) for k in examples[0]}


# one lock for all caches, as a source with a lock of its own could not be sent to a data worker
_reading = threading.RLock()


class Cached:
    """A small split that is read whole at its first use and served from memory afterwards.

    Args:
      source: the split that is read.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.memory = source, None

    def _loaded(self) -> Arrays:
        with _reading:
            if self.memory is None:
                columns = self.source.rows(np.arange(len(self.source)))
                self.memory, self.source = Arrays(**columns), None
            return self.memory

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where they are not known."""
        return labels_of(self.memory or self.source)

    def some(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples as `rows` does, but without reading the others.

        Args:
          indices: (K,), in any order.
        """
        return (self.memory or self.source).rows(indices)

    def __len__(self) -> int:
        return len(self.memory or self.source)

    def __getitem__(self, i: int) -> Example:
        return self._loaded()[i]

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked."""
        return self._loaded().rows(indices)


class Relabeled:
    """A source whose label k becomes table[k].

    Args:
      source: a split with labels.
      table: (number of old labels,) the new label of each old one.
    """

    def __init__(self, source: Source, table: np.ndarray) -> None:
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
        """Return several examples, stacked."""
        columns = self.source.rows(indices)
        return columns | {"label": self.table[columns["label"]]}


class Renormalized:
    """A source some of whose columns get another normalization, such as that of a trained model.

    Args:
      source: a split.
      columns: {name: (the normalization that the column has, the one that it gets)}.
    """

    def __init__(
        self, source: Source, columns: dict[str, tuple[Normalization, Normalization]]
    ) -> None:
        self.source, self.columns = source, columns

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where they are not known."""
        return labels_of(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        return {name: column[0] for name, column in self.rows(np.array([i])).items()}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked."""
        found = self.source.rows(indices)
        for name, (old, new) in self.columns.items():
            found[name] = normalization.changed(found[name], old, new)
        return found


def labels_of(source: Source) -> np.ndarray | None:
    """Return all labels (N,) where they are known without reading the images; else None.

    Args:
      source: a split of any kind.
    """
    return getattr(source, "labels", None)


def some(source: Source, count: int) -> dict[str, np.ndarray]:
    """Return rows that are spread evenly over a source, without keeping others in memory.

    Args:
      source: the split, which is not read whole even if it is `Cached`.
      count: number of rows, at most.
    """
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    return source.some(indices) if isinstance(source, Cached) else source.rows(indices)


def parallel(function: Callable, items: list) -> list:
    """Apply a function to all items by a few threads.

    Args:
      function: item -> result; it must be safe to call from several threads at once.
      items: its arguments.

    Returns:
      The results in the order of the items; the first exception is raised.
    """
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
    """Return whether a split is small enough to be kept decoded, below MEMORY bytes.

    Args:
      size: number of examples.
      image_shape: (H, W, C) of a decoded image, one byte for each value.
    """
    return size * int(np.prod(image_shape)) < MEMORY


def mapped(
    source: Source, transform: Callable[[Example], Example], image_shape: tuple[int, ...]
) -> Source:
    """Transform every example of a source; a small one is kept in memory.

    Args:
      source: the split.
      transform: example -> example, which may change the image and must keep the label.
      image_shape: the shape of the transformed images, by which the split counts as small.
    """
    lazy = Lazy(len(source), lambda i: transform(source[i]), labels_of(source))
    return Cached(lazy) if held_in_memory(len(source), image_shape) else lazy
