"""Captions of images: where they are found, which one of several an example is told with, and digits that describe themselves.

A data set that has captions knows each different one once (`Dataset.captions`); an example's 'caption' (K,) int32 holds the numbers
of its own, -1 beyond the last. `Told` turns them into what the network is told: rows of `tables`, which an encoder of text
(models/text.py) made of the captions, once.

`digits` are the embedded 8x8 digits with captions that are made from the label and from two things measured in the image,
ink and lean ("a bold slanted seven", "a thin 3"). Of each digit one combination of the two is kept from training (HELD_OUT).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.data import files, records
from diffusion_jax.data.sources import Arrays, Source
from diffusion_jax.errors import UserError
from diffusion_jax.provenance import atomic_path

Texts = Sequence[tuple[str, ...]]  # the captions of each example
Progress = Callable[..., contextlib.AbstractContextManager]  # (total, description, unit=...) -> advance
CACHE = "~/.cache/diffusion_jax/captions"
AT_ONCE = 256  # captions encoded between two reports


# ---- what the network is told -------------------------------------------------------------------------------------------


class Told:
    """A source whose captions have become arrays. tables: {name: (captions, ...)}, by number of the caption."""

    def __init__(self, source: Source, tables: dict[str, np.ndarray | Kept]):
        self.source, self.tables = source, tables
        self.rows = source.rows

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        return self.source[i]

    def told(self, batch: dict[str, np.ndarray], phrase: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of the source with entries of the tables instead of 'caption'; of n captions the (phrase mod n)-th, (B,)."""
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
            self.array = np.load(self.path, mmap_mode="r")
        return self.array[index]

    def __getstate__(self) -> dict:
        return {"path": self.path, "array": None}


def numbered(*splits: Texts) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Every different caption, and for each split the numbers (N, K) int32 of each example's, -1 beyond its last."""
    every = tuple(dict.fromkeys(caption for split in splits for own in split for caption in own))
    number = {caption: i for i, caption in enumerate(every)}
    most = max((len(own) for split in splits for own in split), default=0)
    columns = [np.full((len(split), most), -1, np.int32) for split in splits]
    for column, split in zip(columns, splits):
        for row, own in zip(column, split):
            row[: len(own)] = [number[caption] for caption in own]
    return every, columns


def tables(
    captions: Sequence[str],
    encode: Callable[[Sequence[str]], dict[str, np.ndarray]],
    *,
    kept: str = "",
    progress: Progress | None = None,
    cache_dir: str = CACHE,
) -> dict[str, np.ndarray | Kept]:
    """{name: (captions, ...)}, what `encode` makes of the captions. kept: the encoder's name, if they are to be kept on disk:

    in the user's cache, by encoder and a hash of the captions, so that they are made once. progress: shows how far it is.
    """
    if not kept:
        return encode(captions)
    digest = hashlib.sha256(json.dumps([kept, *captions]).encode()).hexdigest()[:24]
    folder = Path(cache_dir).expanduser() / digest
    names = encode(captions[:1])
    paths = {name: folder / f"{name}.npy" for name in names}
    if not all(path.is_file() for path in paths.values()):
        with contextlib.ExitStack() as stack:
            made = {name: np.lib.format.open_memmap(stack.enter_context(atomic_path(paths[name])), "w+", like.dtype,
                                                    (len(captions), *like.shape[1:])) for name, like in names.items()}  # fmt: skip
            advance = stack.enter_context(progress(len(captions), "reading captions", unit="captions")) if progress else len
            for start in range(0, len(captions), AT_ONCE):
                some = captions[start : start + AT_ONCE]
                for name, rows in encode(some).items():
                    made[name][start : start + len(some)] = rows
                advance(len(some)) if progress else None
            for array in made.values():
                array.flush()
    return {name: Kept(path) for name, path in paths.items()}


# ---- captions in files --------------------------------------------------------------------------------------------------


def beside_images(path: str, roots: Sequence[Path], images: Sequence[Sequence[Path]]) -> list[Texts]:
    """The captions of the image files of each split: 'text' of metadata.jsonl, or the lines of a .txt beside the image.

    roots: the split's folder, in which metadata.jsonl is looked for, and in which its file_name lies. A text is one caption, or
    a list of several. UserError where an image has none.
    """
    found = []
    for root, part in zip(roots, images):
        listed = _metadata(root / "metadata.jsonl")
        own = [listed.get(image) or _lines(image.with_suffix(".txt")) for image in part]
        bare = [image for image, texts in zip(part, own) if not texts]
        if bare:
            raise UserError(f"data.path={path}: {len(bare)} of {len(part)} images have no caption, {bare[0].name} for one; write it to "
                            f"{bare[0].with_suffix('.txt').name}, or to metadata.jsonl as file_name and text")  # fmt: skip
        found.append(own)
    return found


def _metadata(file: Path) -> dict[Path, tuple[str, ...]]:
    if not file.is_file():
        return {}
    captions = {}
    for number, line in enumerate(_read(file).splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                captions[file.parent / row["file_name"]] = _texts(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}, line {number}: a JSON object with file_name and text is needed ({error})") from None
    return captions


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, _read(file).splitlines()))) if file.is_file() else ()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text: {error}") from None


def _texts(value) -> tuple[str, ...]:
    """A caption, or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise TypeError(f"a caption is text, or a list of texts, not {value!r:.60}")
    return tuple(filter(None, map(str.strip, values)))


def of_npz(path: str, captions: str, counts: tuple[int, int]) -> list[Texts]:
    """The captions of an .npz of images, from the JSON file `captions` ('': STEM_captions.json beside it), as (train, test).

    It holds a list, an entry for each image: a caption, a list of captions, or an object with 'caption'. Where the .npz has two
    splits, it holds {'train': list, 'test': list}. counts: images in train and test.
    """
    archive = Path(path).expanduser()
    file = Path(captions).expanduser() if captions else archive.with_name(f"{archive.stem}_captions.json")
    if not file.is_file():
        raise UserError(f"data.captions={file} is not a file; it should hold a caption for each image of {path}, as a JSON list")
    try:
        listed = json.loads(_read(file))
        if isinstance(listed, dict):
            splits = [[_texts(entry["caption"] if isinstance(entry, dict) else entry) for entry in listed[part]] for part in ("train", "test")]
        else:
            every = [_texts(entry["caption"] if isinstance(entry, dict) else entry) for entry in listed]
            splits = [[every[i] for i in rows] for rows in files.held_out(len(every))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.captions={file} should be a JSON list of captions, or of objects with 'caption' ({error!r:.100})") from None
    if tuple(map(len, splits)) != counts:
        raise UserError(f"data.captions={file} has {sum(map(len, splits))} captions for {sum(counts)} images; give one for each image")
    return splits


# ---- digits that describe themselves ------------------------------------------------------------------------------------

WEIGHTS = ("thin", "regular", "bold")
SLANTS = ("left", "upright", "right")
WORDS = {"thin": ("thin", "light"), "regular": ("regular",), "bold": ("bold", "heavy"),
         "left": ("left-leaning",), "upright": ("upright",), "right": ("slanted", "right-leaning")}  # fmt: skip
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# digit -> the (weight, slant) that training never sees; each weight and each slant alone is seen with every digit
HELD_OUT = tuple((("bold", "thin")[digit % 2], ("left", "right")[digit // 2 % 2]) for digit in range(10))


def ink(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1) uint8 -> (N,): the mean brightness in [0, 1], for white on black; how bold a digit is."""
    return images.mean(axis=(1, 2, 3)) / 255


def lean(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1) uint8 -> (N,): pixels to the right per pixel up, the shear that would make the digit upright.

    -mu_11 / mu_02 of the brightness, x to the right and y down: the slope of the line fitted to x as a function of y.
    """
    mass = images[..., 0].astype(np.float64)
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-9)[:, None, None]
    y, x = np.indices(images.shape[1:3])
    mean = lambda values: (mass * values).sum(axis=(1, 2), keepdims=True) / total  # noqa: E731
    dx, dy = x - mean(x), y - mean(y)
    return (-mean(dx * dy) / np.maximum(mean(dy * dy), 1e-9))[:, 0, 0]


def thirds(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The (10, 2) values between which lie the lower, middle and upper third of each digit's images."""
    return np.stack([np.quantile(values[labels == digit], (1 / 3, 2 / 3)) for digit in range(10)])


def third(values: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each image: in which third of its digit it is. A seven leans by nature: slanted is one that leans more."""
    return (values[:, None] > edges[labels]).sum(1)


def phrases(digit: int, weight: str, slant: str) -> tuple[str, ...]:
    """Every caption of such a digit: both attributes in several words and orders, one of them, or none."""
    said = []
    for name, heavy, leaning in itertools.product((str(digit), NAMES[digit]), WORDS[weight], WORDS[slant]):
        both = [f"{heavy} {leaning} {name}", f"{leaning} {heavy} {name}"]
        said += [*map(_with_article, both), f"the digit {name}, {heavy} and {leaning}"]
        said += [_with_article(f"{heavy} {name}"), _with_article(f"{leaning} {name}"), name]
    return tuple(dict.fromkeys(said))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou8' else 'a'} {words}"


def held_out_prompts(count: int) -> tuple[list[str], np.ndarray]:
    """(prompts, digits (count,)): digit after digit the combination that training never saw, both attributes said in every way."""
    ways = [[p for p in phrases(d, *HELD_OUT[d]) if any(w in p for w in WORDS[HELD_OUT[d][0]]) and any(s in p for s in WORDS[HELD_OUT[d][1]])]
            for d in range(10)]  # fmt: skip
    digits = np.arange(count) % 10
    return [ways[d][i // 10 % len(ways[d])] for i, d in enumerate(digits)], digits


def digits(data_dir: str, image_size: int, channels: int) -> tuple[list[Arrays], tuple, int, tuple, tuple[str, ...]]:
    """([train, test], image_shape, classes, class_names, captions). Train is without HELD_OUT; test is whole."""
    *sources, shape, classes, names = records.splits("digits", data_dir, image_size, channels)
    splits = [source.rows(np.arange(len(source))) for source in sources]
    seen = splits[0]
    edges = [thirds(measure(seen["image"]), seen["label"]) for measure in (ink, lean)]
    kept, texts = [], []
    for split, training in zip(splits, (True, False)):
        parts = (third(measure(split["image"]), split["label"], edge) for measure, edge in zip((ink, lean), edges))
        told = [(int(d), WEIGHTS[w], SLANTS[s]) for d, w, s in zip(split["label"], *parts)]
        rows = [i for i, (d, *how) in enumerate(told) if not training or tuple(how) != HELD_OUT[d]]
        kept.append({name: column[rows] for name, column in split.items()})
        texts.append([phrases(*told[i]) for i in rows])
    every, columns = numbered(*texts)
    return [Arrays(**split, caption=column) for split, column in zip(kept, columns)], shape, classes, names, every
