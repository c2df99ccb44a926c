"""The embedded digits with captions, made of the label and of ink and lean of an image.

"a bold slanted seven", "the digit 3, thin and upright", "a light 0", "eight": see `phrases`. One
combination of weight and slant of each digit is held out from training (HELD_OUT), so that a model
can be tested on a combination that it has not seen.
"""

from __future__ import annotations

import itertools

import numpy as np

from diffusion_jax.data import captions, records
from diffusion_jax.data.sources import Arrays, Splits
from diffusion_jax.data.transforms import Size

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


# digit -> the (weight, slant) that is not in the training split; each weight and each slant alone
# occurs with every digit
HELD_OUT = tuple(
    (("bold", "thin")[digit % 2], ("left", "right")[digit // 2 % 2]) for digit in range(10)
)


def ink(images: np.ndarray) -> np.ndarray:
    """Return how bold digits are: the mean brightness of each image.

    Args:
      images: uint8 (N, H, W, 1), bright digits on black.

    Returns:
      (N,) in [0, 1].
    """
    return images.mean(axis=(1, 2, 3)) / 255


def lean(images: np.ndarray) -> np.ndarray:
    """Measure how far digits lean, in pixels to the right per pixel up.

    It is -mu_11 / mu_02 of the brightness, x to the right and y down: the slope of the line that is
    fitted to x as a function of y.

    Args:
      images: uint8 (N, H, W, 1), white on black.

    Returns:
      (N,).
    """
    mass = images[..., 0].astype(np.float64)
    total = np.maximum(mass.sum(axis=(1, 2)), 1e-9)[:, None, None]
    y, x = np.indices(images.shape[1:3])

    def mean(values: np.ndarray) -> np.ndarray:
        return (mass * values).sum(axis=(1, 2), keepdims=True) / total

    dx, dy = x - mean(x), y - mean(y)
    return (-mean(dx * dy) / np.maximum(mean(dy * dy), 1e-9))[:, 0, 0]


def thirds(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the values that divide the images of each digit into three thirds.

    Args:
      values: (N,), the ink or the slant of each image.
      labels: (N,), the digits; each of 0, ..., 9 must occur.

    Returns:
      (10, 2): for each digit the values between the lower, the middle and the upper third.
    """
    return np.stack([np.quantile(values[labels == digit], (1 / 3, 2 / 3)) for digit in range(10)])


def third(values: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return in which third of the images of its digit each image is.

    A seven leans by nature: it is called slanted if it leans more than other sevens.

    Args:
      values: (N,), the ink or the slant of each image.
      labels: (N,), the digits.
      edges: (10, 2), as `thirds` returns them.

    Returns:
      (N,) of 0, 1 and 2.
    """
    return (values[:, None] > edges[labels]).sum(1)


def phrases(digit: int, weight: str, slant: str) -> tuple[str, ...]:
    """Return every caption of a kind of digit: with both attributes, with one, and with none.

    Args:
      digit: the digit, 0 to 9.
      weight: 'thin', 'regular' or 'bold'.
      slant: 'left', 'upright' or 'right'.
    """
    found = []
    for name, heavy, leaning in itertools.product(
        (str(digit), NAMES[digit]), WORDS[weight], WORDS[slant]
    ):
        both = [f"{heavy} {leaning} {name}", f"{leaning} {heavy} {name}"]
        found += [*map(_with_article, both), f"the digit {name}, {heavy} and {leaning}"]
        found += [_with_article(f"{heavy} {name}"), _with_article(f"{leaning} {name}"), name]
    return tuple(dict.fromkeys(found))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou8' else 'a'} {words}"


def held_out_prompts(count: int) -> tuple[list[str], np.ndarray]:
    """Return prompts for the combinations that were held out from training, in every wording.

    Args:
      count: the number of prompts, which go through the digits in order.

    Returns:
      (prompts, digits (count,)).
    """

    def full(phrase: str, *attributes: str) -> bool:
        return all(any(word in phrase for word in WORDS[attribute]) for attribute in attributes)

    ways = [
        [phrase for phrase in phrases(d, *HELD_OUT[d]) if full(phrase, *HELD_OUT[d])]
        for d in range(10)
    ]
    digits = np.arange(count) % 10
    return [ways[d][i // 10 % len(ways[d])] for i, d in enumerate(digits)], digits


def splits(data_dir: str, image_size: Size, channels: int) -> Splits:
    """Read the digits with captions; train is without HELD_OUT, test is whole.

    Args:
      data_dir: where TFDS keeps its sets.
      image_size: the size to which images are brought; 0 keeps theirs.
      channels: 1, 3 or 4, to which they are converted; 0 keeps theirs.
    """
    plain = records.splits("digits", data_dir, image_size, channels)
    columns = [source.rows(np.arange(len(source))) for source in (plain.train, plain.test)]
    seen = columns[0]
    edges = [thirds(measure(seen["image"]), seen["label"]) for measure in (ink, lean)]
    kept, texts = [], []
    for split, training in zip(columns, (True, False)):
        parts = (
            third(measure(split["image"]), split["label"], edge)
            for measure, edge in zip((ink, lean), edges)
        )
        looks = [(int(d), WEIGHTS[w], SLANTS[s]) for d, w, s in zip(split["label"], *parts)]
        rows = [i for i, (d, *how) in enumerate(looks) if not training or tuple(how) != HELD_OUT[d]]
        kept.append({name: column[rows] for name, column in split.items()})
        texts.append([phrases(*looks[i]) for i in rows])
    every, numbers = captions.numbered(*texts)
    sources = [Arrays(**split, caption=column) for split, column in zip(kept, numbers)]
    rule = "split as digits, without one look of each digit in training"
    return plain._replace(train=sources[0], test=sources[1], captions=every, rule=rule)
