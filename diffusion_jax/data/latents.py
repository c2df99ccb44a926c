"""Latents of a data set in an .npz, made by experiments.encode.

{train,test}_mean, {train,test}_log_variance   (N, h, w, c)
train_mean_flipped, train_log_variance_flipped the same of the mirrored images, optionally
{train,test}_label                             (N,), where there are labels
shift, scale                                   (c,), of each channel: (z - shift) / scale has
                                               mean 0 and variance 1 over the training split
about                                          JSON: sha256 of the autoencoder's parameters,
                                               shape of the images, their data set, its classes

A file of more than MAPPED bytes is mapped into memory: each process then reads the rows of its own
part of every batch, and none holds the others.
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
MOMENTS = ("mean", "log_variance")
MAPPED = 2**28  # bytes of a file; a smaller one is read and checked whole
CHECKED = 1024  # rows of each mapped array whose numbers are checked
_LATENTS = npz.ArraySpec("f", (None, None, None, None))

ARRAYS = {
    "about": npz.ArraySpec("U", ()),
    "shift": npz.ArraySpec("fiu", (None,), finite=False),
    "scale": npz.ArraySpec("fiu", (None,), finite=False),
    **{f"{split}_{name}": _LATENTS for split in ("train", "test") for name in MOMENTS},
    **{f"train_{name}_flipped": _LATENTS for name in MOMENTS},
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
      mean: (N, h, w, c), the means of the posteriors, of any floating type, in memory or mapped.
      log_variance: (N, h, w, c), the logarithms of their variances.
      label: (N,), or None where there are no labels.
      encoded: shift and scale of each channel, by which mean and standard deviation are normalized.
      flipped: mean and log-variance of the mirrored images, or None.
    """

    def __init__(
        self,
        mean: np.ndarray,
        log_variance: np.ndarray,
        label: np.ndarray | None,
        encoded: Encoded,
        flipped: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.mean, self.log_variance, self.label = mean, log_variance, label
        self.flipped = flipped
        self.shift, self.scale = (np.asarray(x, np.float32) for x in (encoded.shift, encoded.scale))

    def __getstate__(self) -> dict[str, Any]:
        # a data worker maps the file itself
        flipped = self.flipped and tuple(map(npz.sent, self.flipped))
        own = {"mean": npz.sent(self.mean), "log_variance": npz.sent(self.log_variance)}
        return {**self.__dict__, **own, "flipped": flipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flipped = state["flipped"] and tuple(map(npz.received, state["flipped"]))
        own = {name: npz.received(state[name]) for name in MOMENTS}
        self.__dict__ = {**state, **own, "flipped": flipped}

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None without labels."""
        return self.label

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, i: int) -> Example:
        return {name: value[0] for name, value in self.rows(np.array([i])).items()}

    def rows(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return several examples, stacked.

        Args:
          indices: (K,), in any order.
          mirrored: (K,) of bool, which of them are those of the mirrored image; None for none. The
            file must hold them.

        Returns:
          {'image': (K, h, w, c), 'std': the same}, float32, and 'label' (K,) int32 where there are
          labels.
        """
        mean, log_variance = (x[indices].astype(np.float32) for x in (self.mean, self.log_variance))
        if mirrored is not None and mirrored.any():
            for own, other in zip((mean, log_variance), self.flipped):
                own[mirrored] = other[indices[mirrored]]
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
            _flipped(found, split),
        )
        for split in ("train", "test")
    )
    return train, test, encoded


def _flipped(found: dict[str, Any], split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The moments of the mirrored images of a split, if the file has them."""
    names = [f"{split}_{name}_flipped" for name in MOMENTS]
    return tuple(found[name] for name in names) if all(name in found for name in names) else None


def _read(path: str) -> dict[str, Any]:
    file = Path(os.path.expanduser(path))
    if not file.exists():
        raise UserError(
            f"data.path={path} does not exist; make it with python -m experiments.encode"
        )
    try:
        found = _arrays(file)
        for split in ("train", "test"):
            shapes = {
                found[name].shape
                for name in (f"{split}_{n}{end}" for n in MOMENTS for end in ("", "_flipped"))
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


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; the moments are mapped if it is large."""
    if file.stat().st_size <= MAPPED:
        return npz.load(file, {}, ARRAYS.get)
    large = {name: spec for name, spec in ARRAYS.items() if spec is _LATENTS}
    found = npz.load(file, {}, lambda name: None if name in large else ARRAYS.get(name))
    mapped = npz.mapped_members(file, large)
    for name, values in mapped.items():
        some = values[np.linspace(0, len(values) - 1, min(len(values), CHECKED)).astype(int)]
        if not np.isfinite(some).all():
            raise UserError(f"'{file}' is damaged: {name} has values that are not finite")
    return found | mapped


def _check_labels(path: str, found: dict[str, np.ndarray], num_classes: int, remedy: str) -> None:
    """Refuse labels outside 0..num_classes-1, splits without examples, and missing labels."""
    for split in ("train", "test"):
        if not len(found[f"{split}_mean"]):
            raise UserError(f"data.path={path} has no latents of {split}; {remedy}")
        if num_classes and f"{split}_label" not in found:
            raise UserError(
                f"data.path={path} lacks {split}_label, and its data have {num_classes} classes; "
                f"{remedy}"
            )
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
