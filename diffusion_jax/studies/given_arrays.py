"""The arrays that condition samples: typed as numbers, read from a file, or of test examples."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import conditions, sample_conditions, sampling
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.data import Dataset, normalization, transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.inverse.dense import DenseCondition

NONE = "none"  # the null condition
NAMES = ("condition", "dense", "images", "data", "mask")  # arrays that a file may have


class Conditioned(NamedTuple):
    """The conditions of samples, and what is shown and written of them.

    Attributes:
      cond: the condition of N samples.
      labels: (N,), or (0,) without classes.
      vector: (N, K), the vectors in the units of the data, or None.
      seen: (N, ...), what the dense condition shows, as a sample; None without one.
      truth: (N, ...), the samples that the dense condition was made of; None where not known.
    """

    cond: Cond
    labels: np.ndarray
    vector: np.ndarray | None = None
    seen: np.ndarray | None = None
    truth: np.ndarray | None = None


class _Dense(NamedTuple):
    """Dense conditions of a file, with the samples that they were made of if it has those."""

    cond: Array
    truth: np.ndarray | None


def check(experiment: Experiment, condition: str, dense: str) -> None:
    """Check that the model takes what is given.

    Args:
      experiment: the model.
      condition: --condition.
      dense: --dense.

    Raises:
      UserError: for arrays that do not condition the model.
    """
    for flag, text, there, key in (
        ("condition", condition, experiment.units.vector, "data.condition=NAME"),
        ("dense", dense, experiment.dense, "data.dense='lowres(4)', for instance"),
    ):
        if text and not there:
            raise UserError(
                f"--{flag}={text:.60}: this model was trained without such a condition; leave it "
                f"out, or train one with --config.{key}"
            )


def requested(
    experiment: Experiment,
    load: Callable[[], Dataset],
    labels: Sequence[int],
    prompts: Sequence[str],
    condition: str,
    dense: str,
    count: int,
) -> Conditioned:
    """The conditions of samples: what is given, and of test examples in turn what is not.

    Args:
      experiment: a model that arrays condition.
      load: () -> its data set, which is only loaded where it is needed.
      labels: classes, which are taken in turn; () for those of the test examples.
      prompts: captions, each for an equal share of the samples; () for those of the test examples.
      condition: --condition: numbers, a file, 'none', or '' for those of the test examples.
      dense: --dense: a file, 'none', or '' for those of the test examples.
      count: N, the number of samples.

    Raises:
      UserError: for numbers and files that do not fit the model.
    """
    known = prompts or not experiment.encoder, condition or not experiment.units.vector
    cond, truth, own = experiment.conditions.null(count), None, np.zeros(0, int)
    if not (all(known) and (dense or not experiment.dense)):
        dataset = load()
        index = np.arange(count) % len(dataset.test)
        batch, cond = sample_conditions.of_examples(experiment, dataset.test, index)
        truth, own = batch["image"], batch.get("label", own) if experiment.num_classes else own
    if experiment.num_classes and (labels or not len(own)):
        own = np.resize(labels or np.arange(experiment.num_classes), count)
        cond |= {"label": jnp.asarray(own, jnp.int32)}
    if prompts:
        read = experiment.conditions.of_prompts(np.repeat(prompts, count // len(prompts)).tolist())
        cond |= {name: read[name] for name in experiment.encoder.entries}
    if condition:
        cond |= {"vector": in_turn(vectors(experiment, condition), count)}
    if dense:
        found = _dense(experiment, dense)
        cond |= {"concat": in_turn(found.cond, count)}
        truth = None if found.truth is None else in_turn(found.truth, count)
    return _described(experiment, cond, own, truth)


def _described(
    experiment: Experiment, cond: dict[str, Array], labels: np.ndarray, truth: np.ndarray | None
) -> Conditioned:
    """The conditions with what is shown and written of them."""
    vector, seen, finish = None, None, sampling.to_output(experiment)
    if own := experiment.units.vector:
        values = np.asarray(cond["vector"])
        vector = np.where(values[:, -1:] > 0, own.decode(values[:, :-1]), np.nan)
    if experiment.dense:
        seen = finish(np.asarray(experiment.dense.shown(cond["concat"])))
        truth = None if truth is None else finish(truth)
    return Conditioned(cond, labels, vector, seen, truth if experiment.dense else None)


def in_turn(values: Array, count: int) -> Array:
    """The first `count` rows, from the start again after the last one.

    Args:
      values: (M, ...).
      count: number of rows of the result.
    """
    return values[np.arange(count) % len(values)]


def vectors(experiment: Experiment, text: str) -> Array:
    """Read --condition: numbers ('1.5,2', or several vectors '1,2;3,4'), a file, or 'none'.

    Args:
      experiment: a model that vectors condition.
      text: the value of the flag, in the units of the data.

    Returns:
      (M, K + 1), as the network takes them.

    Raises:
      UserError: for anything else, and for another number of columns.
    """
    units = experiment.units.vector
    columns = len(units.shift)
    if text == NONE:
        return jnp.zeros((1, columns + 1))
    if Path(os.path.expanduser(text)).suffix in (".npz", ".npy"):
        values = _arrays("condition", text).get("condition", np.zeros((0, 0)))
        values = values.reshape(-1, 1) if values.ndim < 2 else values
    else:
        values = _typed(text)
    if values.ndim != 2 or values.shape[1] != columns or not len(values):
        raise UserError(
            f"--condition={text:.60}: it has {values.shape[-1]} numbers, and this model takes "
            f"{columns}, as in --condition={','.join(f'{x:.3g}' for x in units.shift)}; several "
            "vectors are separated by ';', and a file has 'condition' (M, K)"
        )
    if not np.isfinite(values).all():
        raise UserError(f"--condition={text:.60}: the numbers must be finite")
    low, high = np.asarray(units.low), np.asarray(units.high)
    slack = 0.01 * (high - low)
    if (values < low - slack).any() or (values > high + slack).any():
        ranges = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in zip(units.low, units.high))
        print(f"note: --condition is outside of the training split ({ranges})", file=sys.stderr)
    return conditions.of_vectors(units.encode(values))


def _typed(text: str) -> np.ndarray:
    """The numbers of '1.5,2' or '1,2;3,4', (M, K)."""
    try:
        rows = [[float(part) for part in row.split(",")] for row in text.split(";")]
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        return np.array(rows)
    except ValueError:
        raise UserError(
            f"--condition={text:.60}: write numbers with commas, such as 1.5,2, or name an .npz or "
            f".npy file; '{NONE}' draws without a condition"
        ) from None


def _dense(experiment: Experiment, text: str) -> _Dense:
    """Read --dense: a file of arrays, an image, or 'none'."""
    dense, shape = experiment.dense, experiment.shape
    if text == NONE:
        return _Dense(experiment.conditions.null(1)["concat"], None)
    suffix = Path(os.path.expanduser(text)).suffix
    found = _arrays("dense", text) if suffix in (".npz", ".npy") else _image(experiment, text)
    if dense.stored:
        return _Dense(_stored(experiment, text, found), None)
    name = "images" if experiment.is_image else "data"
    values = found.get(name, found.get("dense"))
    if values is None or values.shape[1:] not in (shape, dense.measured) or not len(values):
        raise _does_not_fit(text, values, name, shape, dense.measured)
    x = _normalized(experiment, values)
    if values.shape[1:] != shape:
        return _Dense(dense.of_measured(x), None)
    keys = generate.seeds_to_keys(range(len(x)))
    if "mask" not in found:
        return _Dense(dense.make(x, None, keys), np.asarray(x))
    mask = found["mask"]
    _check_mask(text, mask, x.shape, dense)
    return _Dense(dense.of_mask(x, jnp.asarray(mask)), np.asarray(x))


def _check_mask(text: str, mask: np.ndarray, of: tuple[int, ...], dense: DenseCondition) -> None:
    """Refuse a mask for samples of a shape (M, ..., C) unless it has ones and zeros that fit."""
    kept = dense.channels - of[-1]  # channels of the mask: 1, or of vectors one for each number
    fits = mask.ndim == len(of) and mask.shape[1:] == (*of[1:-1], kept) and len(mask) in (1, of[0])
    if dense.of_mask is None or not fits or not np.isin(mask, (0, 1)).all():
        extents = ", ".join(map(str, (*of[1:-1], kept)))
        raise UserError(
            f"--dense={text}: 'mask' has shape {mask.shape}; a model of inpainting takes ones, "
            f"where a sample is known, and zeros (M, {extents})"
        )


def _does_not_fit(
    text: str, values: np.ndarray | None, name: str, *shapes: tuple[int, ...]
) -> UserError:
    there = "nothing of that name" if values is None else f"shape {values.shape}"
    wanted = " or ".join(f"(M, {', '.join(map(str, shape))})" for shape in shapes if shape)
    return UserError(f"--dense={text}: it has {there}; this model takes '{name}' {wanted}")


def _stored(experiment: Experiment, text: str, found: Mapping[str, np.ndarray]) -> Array:
    """The condition of arrays 'dense' as they are stored with the data."""
    units, dense = experiment.units.dense, experiment.dense
    shape = (*experiment.shape[:-1], dense.channels if units else 1)
    values = found.get("dense", found.get("images"))
    if values is None or values.shape[1:] != shape or not len(values):
        raise _does_not_fit(text, values, "dense", shape)
    return dense.make(None, jnp.asarray(units.encode(values) if units else values), None)


def _normalized(experiment: Experiment, values: np.ndarray) -> Array:
    """Samples in the units of the data as the network sees them."""
    if experiment.normalization:
        return jnp.asarray(experiment.normalization.encode(values))
    if experiment.is_image and values.dtype != np.uint8:
        raise UserError(f"--dense: the images are {values.dtype}, and must be uint8")
    return jnp.asarray(transforms.to_float(values))


def _arrays(flag: str, text: str) -> dict[str, np.ndarray]:
    """The arrays of a file; that of an .npy has the name of the flag."""
    path, spec = os.path.expanduser(text), npz.ArraySpec("fiub")
    try:
        if path.endswith(".npy"):
            found = {flag: npz.native(np.asarray(npz.mapped(path)))}
            normalization.check_finite(found[flag], "it")
            return found
        return npz.load(path, {}, lambda name: spec if name in NAMES else None)
    except UserError as error:
        raise UserError(f"--{flag}={text}: {error}") from error


def _image(experiment: Experiment, text: str) -> dict[str, Any]:
    """An image file as an array of one image, of the size that the model takes."""
    if not experiment.is_image or experiment.shape[-1] not in transforms.MODES:
        raise UserError(
            f"--dense={text}: name an .npz or .npy file, since samples {tuple(experiment.shape)} "
            "are no pictures"
        )
    shape, measured = experiment.shape, experiment.dense.measured
    try:
        with transforms.open_image(os.path.expanduser(text)) as image:
            array = transforms.to_array(image, shape[-1])
    except (transforms.UnreadableImage, FileNotFoundError) as error:
        raise UserError(f"--dense={text} cannot be read as an image: {error}") from None
    if array.shape != measured:
        array = transforms.fit(array, shape[:2])
    return {"images": array[None]}
