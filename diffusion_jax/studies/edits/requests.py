"""What the flags of experiments.edit name: tasks, masks, methods, images and strengths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build, members
from diffusion_jax.core import npz, parsing
from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.data import folder, transforms
from diffusion_jax.data.columns import Column, channels
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.inverse.methods import Method

EDITS = ("interpolate", "sdedit", "translate")  # the tasks that are no inverse problems


def of_table(normalization: Normalization | None) -> tuple[Column, ...]:
    """Return the columns of a table; () for other data.

    Args:
      normalization: of the data.
    """
    return normalization.columns if normalization else ()


def mask_for(spec: str, shape: tuple[int, ...], columns: Sequence[Column] = ()) -> np.ndarray:
    """The mask that --mask names: 1 where values are known, 0 where they are painted.

    Args:
      spec: a mask of inverse/masks.py, such as 'box(side=0.5)'; or a file: a picture, white where
        pixels are known, or an .npy file of ones and zeros; or names of columns of a table.
      shape: (N_1, ..., N_d, C) of the samples.
      columns: of a table, whose columns are known or not, with all channels of their categories.

    Returns:
      float32 that broadcasts to a sample, such as (H, W, 1).

    Raises:
      UserError: for a file that is no mask, has another size, or hides nothing or everything.
    """
    if columns:
        return _mask_of_columns(spec, columns)
    spec = parsing.expand_home("--mask", spec)
    if not re.search(r"[./\\]\w+$", spec.partition("(")[0]) and not Path(spec).is_file():
        return build(components.MASKS, spec, shape)
    mask = _array_mask(spec, shape) if spec.endswith(".npy") else _picture_mask(spec, shape)
    if mask.min() == mask.max():
        words = ("1", "0") if spec.endswith(".npy") else ("white", "black")
        white = f"{words[0]}: there is nothing to paint"
        raise UserError(
            f"--mask={spec} is all {white if mask.max() else f'{words[1]}: nothing is known'}"
        )
    return mask


def _mask_of_columns(spec: str, columns: Sequence[Column]) -> np.ndarray:
    """A mask of the columns of a table: their names, or a mask of one value for each."""
    own = [column for column, _ in channels(columns)]
    names = [column.name for column in own]
    chosen = [spec] if spec in names else [part.strip() for part in spec.split(",")]
    if {*chosen} <= {*names}:
        known = np.array([name in chosen for name in names], np.float32)
        if known.all():
            raise UserError(f"--mask={printable(spec)} names all columns: there is nothing to fill")
    else:
        kinds, name = members(components.MASKS), spec.partition("(")[0].strip()
        if name not in kinds and not name.endswith(".npy"):
            raise unknown("column or mask of --mask", name, (*map(printable, names), *kinds))
        known = mask_for(spec, (len(own),))
    return np.repeat(known, [column.width for column in own])


def _picture_mask(spec: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mask from a picture, which masks samples of two axes."""
    if len(shape) != 3:
        raise UserError(
            f"--mask={spec}: a picture masks images, and these samples are {tuple(shape)}; take "
            f"{', '.join(members(components.MASKS))} or an .npy file of ones and zeros"
        )
    try:
        with transforms.open_image(spec) as picture:
            levels = np.asarray(picture.convert("L"), np.float32)
    except transforms.UnreadableImage as error:
        raise UserError(
            f"--mask={spec} cannot be read as a picture ({_reason(error)}); or take half, box or "
            "random"
        ) from error
    mask = (levels > 127.5).astype(np.float32)[..., None]
    if mask.shape[:2] != tuple(shape[:2]):
        sizes = ["x".join(map(str, of[:2])) for of in (mask.shape, shape)]
        raise UserError(f"--mask={spec} is {sizes[0]} (height x width), the images are {sizes[1]}")
    return mask


def _array_mask(spec: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mask from an .npy file, with or without an axis of channels."""
    found = np.asarray(npz.mapped(spec))
    if found.ndim == len(shape) - 1:
        found = found[..., None]
    fits = found.ndim == len(shape) and all(m in (1, n) for m, n in zip(found.shape, shape))
    if not fits or found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
        raise UserError(
            f"--mask={spec} is {found.dtype} {found.shape}; samples {tuple(shape)} need ones, "
            "where values are known, and zeros of that shape, or with 1 in place of an extent"
        )
    return found.astype(np.float32)


def measurement_for(
    task: str, mask: str, shape: tuple[int, ...], columns: Sequence[Column] = ()
) -> Measurement:
    """The measurement that --task and --mask name.

    Args:
      task: a measurement of inverse/measurements.py, with or without arguments.
      mask: the mask of the task inpaint ('' takes half); '' for other tasks.
      shape: (N_1, ..., N_d, C) of the samples.
      columns: of a table.

    Raises:
      UserError: for an unknown task, and for a mask that the task does not use.
    """
    name = task.partition("(")[0].strip()
    known = members(components.MEASUREMENTS)
    if name not in known and name not in components.MEASUREMENTS.aliases:
        raise unknown("task", name, (*known, *EDITS))
    if name == "inpaint":
        known = mask_for(mask or "half", shape, columns)
        return build(components.MEASUREMENTS, task, shape, known)
    if mask:
        raise UserError(f"--mask={mask} is for --task=inpaint, and --task={task} has no mask")
    return build(components.MEASUREMENTS, task, shape)


def method_for(spec: str, measurement: Measurement, task: str) -> Method:
    """The method that --method names.

    Args:
      spec: a method of inverse/methods.py, with or without arguments.
      measurement: the measurement that it is for.
      task: the name of the measurement, for the error.

    Raises:
      UserError: for a method that needs a linear measurement, if this one is not linear.
    """
    method = build(components.METHODS, spec)
    if method.linear and measurement.spectral is None:
        raise UserError(
            f"--method={spec} needs a linear measurement, and --task={task} is not linear; "
            "take --method=dps"
        )
    return method


def read_images(files: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """The picture files of --image, in the shape of a model's images.

    Args:
      files: the picture files; each is cropped to a square around its center and resized.
      shape: (H, W, C) of the model's images.

    Returns:
      (N, H, W, C) uint8.

    Raises:
      UserError: for a file that is no picture, and for one of another size if the model's images
        are not square.
    """
    height, width, channels = shape
    if channels not in transforms.MODES:
        raise UserError(
            f"--image={files[0]}: the model's images have {channels} channels, and pictures have "
            "1, 3 or 4; name a file of such images by --config.data.path, whose held-out samples "
            "are then edited"
        )
    found = []
    for name in files:
        path = Path(parsing.expand_home("--image", name))
        try:
            with transforms.open_image(path) as picture:
                size = picture.size
            if size != (width, height) and height != width:
                raise UserError(
                    f"--image={name} is {size[1]}x{size[0]} (height x width), and the model's "
                    f"images are {height}x{width}"
                )
            found.append(folder.decode(path, 0 if size == (width, height) else height, channels))
        except transforms.UnreadableImage as error:
            raise UserError(
                f"--image={name} cannot be read as a picture ({_reason(error)})"
            ) from error
    return np.stack(found)


def _reason(error: transforms.UnreadableImage) -> str:
    """Why a picture cannot be read, in a few words."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def strengths_of(text: str) -> list[float]:
    """Parse the strengths of SDEdit: '0.3,0.6' -> [0.3, 0.6].

    Args:
      text: shares of the sampler's steps that are run again, above 0 and at most 1, separated by
        commas; 1 begins at pure noise.

    Raises:
      UserError: for anything else.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < strength <= 1 for strength in found):
        raise UserError(
            f"--strength={text}: write shares of the sampler's steps, above 0 and at most 1, such "
            "as 0.3,0.5,0.7"
        )
    return found
