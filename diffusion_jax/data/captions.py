"""Captions of images: where they are found, and which one of several an example is told with.

A data set that has captions knows each different one once (`Dataset.captions`); an example's
'caption' (K,) int32 holds the numbers of its own, -1 beyond the last. `Told` turns them into what
the network is told: rows of `tables`, which an encoder of text (models/text.py) made of the
captions, once.
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

from diffusion_jax import reading
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.files import atomic_path

Texts = Sequence[tuple[str, ...]]  # the captions of each example

Progress = Callable[
    ..., contextlib.AbstractContextManager
]  # (total, description, unit=...) -> advance

CACHE = "~/.cache/diffusion_jax/captions"
AT_ONCE = 256  # captions encoded between two reports


# ---- what the network is told
class Told:
    """A source whose captions have become arrays. tables: {name: (captions, ...)}, by number of the
    caption.
    """

    def __init__(self, source: Source, tables: dict[str, np.ndarray | Kept]):
        self.source, self.tables = source, tables
        self.rows = source.rows

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        return self.source[i]

    def told(self, batch: dict[str, np.ndarray], phrase: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of the source with entries of the tables instead of 'caption'; of n captions the
        (phrase mod n)-th, (B,).
        """
        own = batch["caption"]
        chosen = own[np.arange(len(own)), phrase % (own >= 0).sum(1)]
        rest = {name: column for name, column in batch.items() if name != "caption"}
        return rest | {name: np.asarray(table[chosen]) for name, table in self.tables.items()}


class Kept:
    """An array on disk, read where it is used: what travels to a data worker is its path."""

    def __init__(self, path: Path):
        self.path, self.array = path, None

    def __getitem__(self, index):
        if self.array is None:
            self.array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self.array[index]

    def __getstate__(self) -> dict:
        return {"path": self.path, "array": None}


class Numbers:
    """Every different caption of some examples, and its number. texts: the captions of each
    example.
    """

    def __init__(self, texts: Iterable[tuple[str, ...]]):
        self.number, self.most = {}, 0
        for own in texts:
            self.most = max(self.most, len(own))
            for caption in own:
                self.number.setdefault(caption, len(self.number))

    def every(self) -> tuple[str, ...]:
        return tuple(self.number)

    def row(self, own: tuple[str, ...]) -> np.ndarray:
        """An example's 'caption': (K,) int32, K the most captions that an example has."""
        row = np.full(self.most, -1, np.int32)
        row[: len(own)] = [self.number[caption] for caption in own]
        return row


def numbered(*splits: Texts) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Every different caption, and for each split the numbers (N, K) int32 of each example's."""
    numbers = Numbers(own for split in splits for own in split)
    return numbers.every(), [np.stack([numbers.row(own) for own in split]) for split in splits]


def tables(
    captions: Sequence[str],
    encode: Callable[[Sequence[str]], dict[str, np.ndarray]],
    like: Mapping[str, Any],
    *,
    kept: str = "",
    progress: Progress | None = None,
    cache_dir: str = CACHE,
) -> dict[str, np.ndarray | Kept]:
    """{name: (captions, ...)}, what `encode` makes of the captions. like: name -> shape and dtype
    of one.

    kept: the encoder's name, if the arrays are to be kept on disk: in the user's cache, by encoder
    and a hash of the captions, so that they are made once. progress: shows how far it is.
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
            for start in range(0, len(captions), AT_ONCE):
                some = captions[start : start + AT_ONCE]
                for name, rows in encode(some).items():
                    made[name][start : start + len(some)] = rows
                advance(len(some)) if progress else None
            for array in made.values():
                array.flush()
    return {name: Kept(path) for name, path in paths.items()}


def _whole(path: Path, dtype: Any, shape: tuple[int, ...]) -> bool:
    """True. UserError for a file that is no array of this dtype and shape, which is not read for
    that.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
    except Exception as error:  # numpy raises what it likes for a damaged header
        raise UserError(f"'{path}' is damaged ({type(error).__name__}: {error})") from error
    if found is None or found.dtype != dtype or found.shape != shape:
        raise UserError(f"'{path}' is damaged: it is no array of {np.dtype(dtype)}{list(shape)}")
    return True


# ---- captions in files
def beside_images(
    path: str, roots: Sequence[Path], images: Sequence[Sequence[Path]]
) -> list[Texts]:
    """The captions of the image files of each split: 'text' of metadata.jsonl, or the lines of a
    .txt beside the image.

    roots: the split's folder, in which metadata.jsonl is looked for, and in which its file_name
    lies. A text is one caption, or a list of several. UserError where an image has none.
    """
    found, there = [], {image for part in images for image in part}
    for root, part in zip(roots, images):
        listed = _metadata(root / "metadata.jsonl")
        own = [listed.get(image) or _lines(image.with_suffix(".txt")) for image in part]
        bare = [image for image, texts in zip(part, own) if not texts]
        if bare:
            raise UserError(
                f"data.path={path}: {len(bare)} of {len(part)} images have no caption, {bare[0].name} for one; write "
                f"it to {bare[0].with_suffix('.txt').name}, or to metadata.jsonl as file_name and text"
            )
        found.append(own)
        if unused := sorted(map(str, listed.keys() - there)):
            logging.warning(
                "%s: %d lines name no image of the set, %s for one",
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


def _texts(value) -> tuple[str, ...]:
    """A caption, or a list of them."""
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
    """The captions of an .npz of images, from the JSON file `captions` ('': STEM_captions.json
    beside it), as (train, test).

    It holds a list, an entry for each image: a caption, a list of captions, or an object with
    'caption'. Where the .npz has two splits, it holds {'train': list, 'test': list}. counts: images
    in train and test; rows: those of each in a file that is not split.
    """
    archive = Path(os.path.expanduser(path))
    file = (
        Path(os.path.expanduser(captions))
        if captions
        else archive.with_name(f"{archive.stem}_captions.json")
    )
    if not file.is_file():
        raise UserError(
            f"data.captions={file} is not a file; it should be a JSON list with a caption for each image of {path}"
        )

    def own(entry):
        return _texts(entry["caption"] if isinstance(entry, dict) else entry)

    try:
        listed = json.loads(_read(file), object_pairs_hook=reading.once)
        if isinstance(listed, dict):
            splits = [[own(entry) for entry in listed[part]] for part in ("train", "test")]
        else:
            every = [own(entry) for entry in listed]
            if rows is None or len(every) != sum(counts):
                splits = [every, []]  # too many or too few: the count below says so
            else:
                splits = [[every[i] for i in own_rows] for own_rows in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.captions={file} should be a JSON list of captions, or of objects with 'caption' "
            f"({error!r:.100})"
        ) from None
    if tuple(map(len, splits)) != counts:
        raise UserError(
            f"data.captions={file} has {sum(map(len, splits))} captions for {sum(counts)} images; give one for each"
        )
    if bare := [
        (part, i)
        for part, split in zip(("train", "test"), splits)
        for i, texts in enumerate(split)
        if not texts
    ]:
        raise UserError(
            f"data.captions={file}: {len(bare)} images have no caption, {bare[0][0]} image {bare[0][1]} for one; "
            "write one for each"
        )
    return splits
