"""Captions of images: where they are read, and which of several an example is paired with.

A data set with captions holds each distinct caption once (`Dataset.captions`); an example's
'caption' (K,) int32 holds the numbers of its own captions, -1 beyond the last. `CaptionedSource`
replaces them by conditioning inputs: rows of `tables`, which a text encoder (models/text.py) made
of the captions, once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import atomic_path
from diffusion_jax.data.sources import Source, labels_of

Texts = Sequence[tuple[str, ...]]  # the captions of each example

# (total, description, unit=...) -> a context manager of a function `advance`
Progress = Callable[..., contextlib.AbstractContextManager]

CACHE = "~/.cache/diffusion_jax/captions"
BATCH = 256  # captions that are encoded at a time


# ---- conditioning inputs
class CaptionedSource:
    """A source whose captions are conditioning inputs of a network.

    Args:
      source: the source, with 'caption'.
      tables: {name of a conditioning input: (captions, ...)}, by the number of the caption.
    """

    def __init__(self, source: Source, tables: dict[str, np.ndarray | CachedTable]) -> None:
        self.source, self.tables = source, tables
        self.rows = source.rows

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where they are not known."""
        return labels_of(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        return self.source[i]

    def with_captions(
        self, batch: dict[str, np.ndarray], phrase: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Replace 'caption' by conditioning inputs.

        Args:
          batch: rows of the source.
          phrase: (B,); of n captions of an example the (phrase mod n)-th is taken.
        """
        own = batch["caption"]
        chosen = own[np.arange(len(own)), phrase % (own >= 0).sum(1)]
        rest = {name: column for name, column in batch.items() if name != "caption"}
        return rest | {name: np.asarray(table[chosen]) for name, table in self.tables.items()}


class CachedTable:
    """An array on disk that is read where it is used: a data worker receives its path alone.

    Args:
      path: the .npy file, which is mapped into memory at its first use.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.array = path, None

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.array is None:
            self.array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self.array[index]

    def __getstate__(self) -> dict:
        return {"path": self.path, "array": None}


class CaptionNumbers:
    """The distinct captions of some examples, numbered in the order of their first occurrence.

    Args:
      texts: the captions of each example.
    """

    def __init__(self, texts: Iterable[tuple[str, ...]]) -> None:
        self.number, self.most = {}, 0
        for own in texts:
            self.most = max(self.most, len(own))
            for caption in own:
                self.number.setdefault(caption, len(self.number))

    def every(self) -> tuple[str, ...]:
        """Return the distinct captions."""
        return tuple(self.number)

    def row(self, own: tuple[str, ...]) -> np.ndarray:
        """Return the 'caption' of an example.

        Args:
          own: the captions of the example, which must be among those that were numbered.

        Returns:
          (K,) int32, where K is the largest number of captions of an example; -1 fills the rest.
        """
        row = np.full(self.most, -1, np.int32)
        row[: len(own)] = [self.number[caption] for caption in own]
        return row


def numbered(*splits: Texts) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Number the captions of several splits.

    Args:
      *splits: for each split, the captions of each of its N examples.

    Returns:
      (the distinct captions, for each split the numbers (N, K) int32 of its examples' captions); K
      is the largest number of captions of an example in any split, and -1 fills the rest of a row.
    """
    numbers = CaptionNumbers(own for split in splits for own in split)
    return numbers.every(), [np.stack([numbers.row(own) for own in split]) for split in splits]


def tables(
    captions: Sequence[str],
    encode: Callable[[Sequence[str]], dict[str, np.ndarray]],
    like: Mapping[str, Any],
    *,
    kept: str = "",
    progress: Progress | None = None,
    cache_dir: str = CACHE,
) -> dict[str, np.ndarray | CachedTable]:
    """Encode captions to tables of conditioning inputs.

    Args:
      captions: the captions.
      encode: captions -> {name: (captions, ...)}.
      like: name -> an object with the shape and dtype of one entry.
      kept: the name of the encoder, if the tables are to be kept on disk; '' keeps nothing.
      progress: shows the progress; None shows none.
      cache_dir: where they are kept, under a hash of the encoder and the captions.

    Returns:
      {name: table}.
    """
    if not kept:
        return encode(captions)
    digest = hashlib.sha256(json.dumps([kept, *captions]).encode()).hexdigest()[:24]
    folder = Path(cache_dir).expanduser() / digest
    paths = {name: folder / f"{name}.npy" for name in like}
    shapes = {name: (one.dtype, (len(captions), *one.shape)) for name, one in like.items()}
    if not all(
        reading.kept(path, lambda path, name=name: _whole(path, *shapes[name]))
        for name, path in paths.items()
    ):
        with contextlib.ExitStack() as stack:
            made = {
                name: np.lib.format.open_memmap(
                    stack.enter_context(atomic_path(paths[name])),
                    "w+",
                    one.dtype,
                    (len(captions), *one.shape),
                )
                for name, one in like.items()
            }
            advance = (
                stack.enter_context(progress(len(captions), "reading captions", unit="captions"))
                if progress
                else len
            )
            for start in range(0, len(captions), BATCH):
                some = captions[start : start + BATCH]
                for name, rows in encode(some).items():
                    made[name][start : start + len(some)] = rows
                advance(len(some)) if progress else None
            for array in made.values():
                array.flush()
    return {name: CachedTable(path) for name, path in paths.items()}


def _whole(path: Path, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Return True for an array of this type and shape in the file; UserError for any other."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
    except Exception as error:  # numpy raises many types for a damaged header
        raise UserError(f"'{path}' is damaged ({type(error).__name__}: {error})") from error
    if found is None or found.dtype != dtype or found.shape != shape:
        raise UserError(
            f"'{path}' is damaged: it is not an array of {np.dtype(dtype)}{list(shape)}"
        )
    return True


# ---- captions in files
def of_images(path: str, roots: Sequence[Path], images: Sequence[Sequence[Path]]) -> list[Texts]:
    """Read the captions of image files from metadata.jsonl, or from a .txt next to an image.

    Args:
      path: the folder of the data, for messages.
      roots: for each split, the folder of metadata.jsonl, to which its file_name is relative.
      images: for each split, its image files.

    Returns:
      The captions of each split.

    Raises:
      UserError: where an image has none.
    """
    found, there = [], {image for part in images for image in part}
    for root, part in zip(roots, images):
        listed = _metadata(root / "metadata.jsonl")
        own = [listed.get(image) or _lines(image.with_suffix(".txt")) for image in part]
        bare = [image for image, texts in zip(part, own) if not texts]
        if bare:
            raise UserError(
                f"data.path={path}: {len(bare)} of {len(part)} images have no caption, such as "
                f"{bare[0].name}; write it to {bare[0].with_suffix('.txt').name}, or to "
                "metadata.jsonl as file_name and text"
            )
        found.append(own)
        if unused := sorted(map(str, listed.keys() - there)):
            logging.warning(
                "%s: %d lines name images that are not in the set, such as %s",
                root / "metadata.jsonl",
                len(unused),
                unused[0],
            )
    return found


def _metadata(file: Path) -> dict[Path, tuple[str, ...]]:
    if not file.is_file():
        return {}
    captions = {}
    for number, line in enumerate(_read(file).splitlines(), 1):
        try:
            row = json.loads(line, object_pairs_hook=reading.once) if line.strip() else None
            if row is not None:
                image, texts = file.parent / row["file_name"], _texts(row["text"])
                if image in captions:
                    raise ValueError(
                        f"{row['file_name']} has a line already; of several captions text is a list"
                    )
                captions[image] = texts
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{file}, line {number}: a JSON object with file_name and text is needed ({error})"
            ) from None
    return captions


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, _read(file).splitlines()))) if file.is_file() else ()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text: {error}") from None


def _texts(value: Any) -> tuple[str, ...]:
    """Return one caption, or a list of them, as a tuple."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise TypeError(f"a caption is text, or a list of texts, not {value!r:.60}")
    return tuple(filter(None, map(str.strip, values)))


def of_npz(
    path: str,
    captions: str,
    counts: tuple[int, int],
    rows: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[Texts]:
    """Read the captions of an .npz of images from a JSON file.

    The file holds a list with an entry for each image: a caption, a list of captions, or an object
    with 'caption'. For an .npz with two splits it holds {'train': list, 'test': list}.

    Args:
      path: the .npz.
      captions: the JSON file; '' means STEM_captions.json next to the .npz.
      counts: the numbers of images in train and test.
      rows: the rows of train and test in an .npz that is not split, else None.

    Returns:
      (captions of train, captions of test).

    Raises:
      UserError: for a file that does not fit the images.
    """
    archive = Path(os.path.expanduser(path))
    file = archive.with_name(f"{archive.stem}_captions.json")
    if captions:
        file = Path(os.path.expanduser(captions))
    if not file.is_file():
        raise UserError(
            f"data.captions={file} is not a file; it should be a JSON list with a caption for each "
            f"image of {path}"
        )
    splits = _json_captions(file, counts, rows)
    if tuple(map(len, splits)) != counts:
        raise UserError(
            f"data.captions={file} has {sum(map(len, splits))} captions for {sum(counts)} images; "
            "give one for each"
        )
    if bare := [
        (part, i)
        for part, split in zip(("train", "test"), splits)
        for i, texts in enumerate(split)
        if not texts
    ]:
        raise UserError(
            f"data.captions={file}: {len(bare)} images have no caption, such as {bare[0][0]} image "
            f"{bare[0][1]}; write one for each"
        )
    return splits


def _json_captions(
    file: Path, counts: tuple[int, int], rows: tuple[np.ndarray, np.ndarray] | None
) -> list[Texts]:
    """Read the captions of train and test from a JSON file; UserError for another structure."""

    def own(entry: Any) -> tuple[str, ...]:
        return _texts(entry["caption"] if isinstance(entry, dict) else entry)

    try:
        listed = json.loads(_read(file), object_pairs_hook=reading.once)
        if isinstance(listed, dict):
            return [[own(entry) for entry in listed[part]] for part in ("train", "test")]
        every = [own(entry) for entry in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.captions={file} should be a JSON list of captions, or of objects with 'caption' "
            f"({error!r:.100})"
        ) from None
    if rows is None or len(every) != sum(counts):
        return [every, []]  # too many or too few, which the caller counts
    return [[every[i] for i in own_rows] for own_rows in rows]
