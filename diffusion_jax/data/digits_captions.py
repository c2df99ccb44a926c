"""The embedded digits, described in words: captions made of the label and of two things measured in
the image, ink and lean.

"a bold slanted seven", "the digit 3, thin and upright", "a light 0", "eight": `phrases`. Of each
digit one combination of weight and slant is kept from training (HELD_OUT), so that a model can be
asked for what it has never seen together.
"""

from __future__ import annotations

import itertools

import numpy as np

from diffusion_jax.data import captions, records
from diffusion_jax.data.sources import Arrays

WEIGHTS = ("thin", "regular", "bold")
SLANTS = ("left", "upright", "right")

WORDS = {
    "thin": ("thin", "light"),
    "regular": ("regular",),
    "bold": ("bold", "heavy"),
    "left": ("left-leaning",),
    "upright": ("upright",),
    "right": ("slanted", "right-leaning"),
}

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


# digit -> the (weight, slant) that training never sees; each weight and each slant alone is seen
# with every digit
HELD_OUT = tuple(
    (("bold", "thin")[digit % 2], ("left", "right")[digit // 2 % 2]) for digit in range(10)
)


def ink(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1) uint8 -> (N,): the mean brightness in [0, 1], for white on black; how bold a
    digit is.
    """
    return images.mean(axis=(1, 2, 3)) / 255


def lean(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1) uint8 -> (N,): pixels to the right per pixel up, the shear that would make the
    digit upright.

    -mu_11 / mu_02 of the brightness, x to the right and y down: the slope of the line fitted to x
    as a function of y.
    """
    mass = images[..., 0].astype(np.float64)
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-9)[:, None, None]
    y, x = np.indices(images.shape[1:3])

    def mean(values):
        return (mass * values).sum(axis=(1, 2), keepdims=True) / total

    dx, dy = x - mean(x), y - mean(y)
    return (-mean(dx * dy) / np.maximum(mean(dy * dy), 1e-9))[:, 0, 0]


def thirds(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The (10, 2) values between which lie the lower, middle and upper third of each digit's
    images.
    """
    return np.stack([np.quantile(values[labels == digit], (1 / 3, 2 / 3)) for digit in range(10)])


def third(values: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each image: in which third of its digit it is. A seven leans by nature: slanted
    is one that leans more.
    """
    return (values[:, None] > edges[labels]).sum(1)


def phrases(digit: int, weight: str, slant: str) -> tuple[str, ...]:
    """Every caption of such a digit: both attributes in several words and orders, one of them, or
    none.
    """
    said = []
    for name, heavy, leaning in itertools.product(
        (str(digit), NAMES[digit]), WORDS[weight], WORDS[slant]
    ):
        both = [f"{heavy} {leaning} {name}", f"{leaning} {heavy} {name}"]
        said += [*map(_with_article, both), f"the digit {name}, {heavy} and {leaning}"]
        said += [_with_article(f"{heavy} {name}"), _with_article(f"{leaning} {name}"), name]
    return tuple(dict.fromkeys(said))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou8' else 'a'} {words}"


def held_out_prompts(count: int) -> tuple[list[str], np.ndarray]:
    """(prompts, digits (count,)): digit after digit, what training never saw of it together, in
    every wording.
    """

    def full(phrase: str, *attributes: str) -> bool:
        return all(any(word in phrase for word in WORDS[attribute]) for attribute in attributes)

    ways = [
        [phrase for phrase in phrases(d, *HELD_OUT[d]) if full(phrase, *HELD_OUT[d])]
        for d in range(10)
    ]
    digits = np.arange(count) % 10
    return [ways[d][i // 10 % len(ways[d])] for i, d in enumerate(digits)], digits


def splits(
    data_dir: str, image_size: int, channels: int
) -> tuple[list[Arrays], tuple, int, tuple, tuple[str, ...]]:
    """([train, test], image_shape, classes, class_names, captions). Train is without HELD_OUT; test
    is whole.
    """
    *sources, shape, classes, names, _, _, _ = records.splits(
        "digits", data_dir, image_size, channels
    )
    splits = [source.rows(np.arange(len(source))) for source in sources]
    seen = splits[0]
    edges = [thirds(measure(seen["image"]), seen["label"]) for measure in (ink, lean)]
    kept, texts = [], []
    for split, training in zip(splits, (True, False)):
        parts = (
            third(measure(split["image"]), split["label"], edge)
            for measure, edge in zip((ink, lean), edges)
        )
        told = [(int(d), WEIGHTS[w], SLANTS[s]) for d, w, s in zip(split["label"], *parts)]
        rows = [i for i, (d, *how) in enumerate(told) if not training or tuple(how) != HELD_OUT[d]]
        kept.append({name: column[rows] for name, column in split.items()})
        texts.append([phrases(*told[i]) for i in rows])
    every, columns = captions.numbered(*texts)
    return (
        [Arrays(**split, caption=column) for split, column in zip(kept, columns)],
        shape,
        classes,
        names,
        every,
    )
