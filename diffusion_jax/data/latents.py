"""Latents of a data set in an .npz, made by experiments.encode.

{train,test}_mean, {train,test}_log_variance   (N, h, w, c)
{train,test}_label                             (N,), where there are labels
shift, scale                                   (c,), of each channel: (z - shift) / scale has
                                               mean 0 and variance 1 over the training split
about                                          JSON: sha256 of the autoencoder's parameters,
                                               shape of the images, their data set, its classes
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Example

STATISTICS = ("shift", "scale")
NEEDED = ("about", "train_mean", "train_log_variance", "test_mean", "test_log_variance")
_LATENTS = npz.ArraySpec("f", (None, None, None, None))

ARRAYS = {
    "about": npz.ArraySpec("U", ()),
    "shift": npz.ArraySpec("fiu", (None,), finite=False),
    "scale": npz.ArraySpec("fiu", (None,), finite=False),
    **{
        f"{split}_{name}": _LATENTS
        for split in ("train", "test")
        for name in ("mean", "log_variance")
    },
    **{f"{split}_label": npz.ArraySpec("iu", (None,)) for split in ("train", "test")},
}

ABOUT = reading.record(
    {
        "autoencoder": reading.text(1),
        "image_shape": reading.items(reading.integer(1, 2**20), 3, 3),
        "data": reading.text(),
        "num_classes": reading.integer(0, 10**6),
        "class_names": reading.items(reading.text()),
    }
)


class Encoded(NamedTuple):
    """The origin of latents: their data set and autoencoder.

    Attributes:
      autoencoder: the sha256 of its parameters.
      image_shape: the shape of the images.
      data: the name of their data set.
      num_classes: the number of its classes.
      class_names: the names of its classes.
      shift: the shift of every channel.
      scale: the scale of every channel.
    """

    autoencoder: str
    image_shape: tuple[int, int, int]
    data: str
    num_classes: int
    class_names: tuple[str, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]


class Latents:
    """A split of latents, in units in which z has mean 0 and variance 1.

    An example has 'image', the mean of the posterior, and 'std', both (h, w, c) float32.

    Args:
      mean: (N, h, w, c), the means of the posteriors, of any floating type.
      log_variance: (N, h, w, c), the logarithms of their variances.
      label: (N,), or None where there are no labels.
      encoded: shift and scale of each channel, by which mean and standard deviation are normalized.
    """

    def __init__(
        self, mean: np.ndarray, log_variance: np.ndarray, label: np.ndarray | None, encoded: Encoded
    ) -> None:
        self.mean, self.log_variance, self.label = mean, log_variance, label
        self.shift, self.scale = (np.asarray(x, np.float32) for x in (encoded.shift, encoded.scale))

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None without labels."""
        return self.label

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, i: int) -> Example:
        return {name: value[0] for name, value in self.rows(np.array([i])).items()}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked.

        Args:
          indices: (K,), in any order.

        Returns:
          {'image': (K, h, w, c), 'std': the same}, float32, and 'label' (K,) int32 where there are
          labels.
        """
        mean, log_variance = (x[indices].astype(np.float32) for x in (self.mean, self.log_variance))
        found = {
            "image": (mean - self.shift) / self.scale,
            "std": np.exp(0.5 * log_variance) / self.scale,
        }
        return found | (
            {} if self.label is None else {"label": self.label[indices].astype(np.int32)}
        )


def save(path: str | Path, encoded: Encoded, splits: dict[str, np.ndarray]) -> None:
    """Write a file of latents, atomically.

    Args:
      path: the file.
      encoded: what made them.
      splits: the arrays of NEEDED, and labels.
    """
    about = {key: value for key, value in encoded._asdict().items() if key not in STATISTICS}
    arrays = {
        "about": json.dumps(about),
        "shift": np.float32(encoded.shift),
        "scale": np.float32(encoded.scale),
    }
    npz.save(path, arrays | splits)


def load(path: str, image_size: int = 0, channels: int = 0) -> tuple[Latents, Latents, Encoded]:
    """Read a file of latents.

    Args:
      path: the file.
      image_size: the side of the latents that the config states; 0 accepts any.
      channels: the channels of the latents that the config states; 0 accepts any.

    Returns:
      (train, test, what made them).

    Raises:
      UserError: for a file that is not one of latents, for statistics that are missing, and for
        latents of another size.
    """
    made, found = "make it with python -m experiments.encode", _read(path)
    if missing := [name for name in NEEDED if name not in found]:
        raise UserError(
            f"data.path={path} is not a file of latents: it lacks {', '.join(missing)}; {made}"
        )
    if missing := [name for name in STATISTICS if name not in found]:
        missing = " and ".join(missing)
        raise UserError(
            f"data.path={path} lacks the statistics {missing}, without which latents have no "
            f"scale; {made}"
        )
    shift, scale = (found[name].astype(float) for name in STATISTICS)
    shape, encoded = found["train_mean"].shape[1:], _about(path, found, shift, scale)
    if not (
        shift.shape == scale.shape == shape[-1:]
        and np.isfinite([shift, scale]).all()
        and (scale > 0).all()
    ):
        what = f"its statistics, shift {shift} and scale {scale}, are not those of latents {shape}"
        raise UserError(f"data.path={path}: {what}; {made}")
    for key, stated, true in (
        ("image_size", image_size, shape[0]),
        ("channels", channels, shape[-1]),
    ):
        if stated not in (0, true):
            raise UserError(
                f"data.{key}={stated}, but the latents of data.path={path} are {shape}; set "
                f"data.{key}=0"
            )
    _check_labels(path, found, encoded.num_classes, made)
    train, test = (
        Latents(
            found[f"{split}_mean"],
            found[f"{split}_log_variance"],
            found.get(f"{split}_label"),
            encoded,
        )
        for split in ("train", "test")
    )
    return train, test, encoded


def _read(path: str) -> dict[str, Any]:
    file = Path(os.path.expanduser(path))
    if not file.exists():
        raise UserError(
            f"data.path={path} does not exist; make it with python -m experiments.encode"
        )
    try:
        found = npz.load(file, {}, ARRAYS.get)
        for split in ("train", "test"):
            shapes = {
                found[name].shape
                for name in (f"{split}_mean", f"{split}_log_variance")
                if name in found
            }
            labels = found.get(f"{split}_label")
            if len(shapes) > 1 or (
                labels is not None and shapes and labels.shape != next(iter(shapes))[:1]
            ):
                raise UserError(
                    f"the means, log-variances and labels of {split} are not as many, or of one "
                    "size"
                )
        return found
    except UserError as error:
        raise UserError(f"data.path={path} cannot be read as a file of latents: {error}") from error


def _check_labels(path: str, found: dict[str, np.ndarray], num_classes: int, remedy: str) -> None:
    """Refuse labels outside 0..num_classes-1."""
    for split in ("train", "test"):
        labels = found.get(f"{split}_label", np.zeros(0, int))
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise UserError(
                f"data.path={path}: labels of {split} are not below "
                f"num_classes={num_classes}; {remedy}"
            )


def _about(path: str, found: dict[str, Any], shift: np.ndarray, scale: np.ndarray) -> Encoded:
    try:
        about = reading.json_text(str(found["about"]), "its description", ABOUT)
    except UserError as error:
        raise UserError(
            f"data.path={path} does not state which autoencoder made it ({error}); make it with "
            "python -m experiments.encode"
        ) from None
    about = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about.items()
        if key in Encoded._fields
    }
    return Encoded(**about, shift=tuple(shift.tolist()), scale=tuple(scale.tolist()))
