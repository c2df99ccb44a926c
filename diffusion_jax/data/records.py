"""Sets that tensorflow-datasets knows by name, prepared as array_record, read without TensorFlow.

Our own digits are prepared here on first use. Any other set that is not prepared yet needs
TensorFlow, once, for that.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import captions, tensor_sets, transforms
from diffusion_jax.data.sources import Source, Splits, mapped
from diffusion_jax.data.tfds_builder import (
    FORMAT,
    default_dir,
    find_builder,
    is_mocked,
    prepared,
    recipe,
)
from diffusion_jax.data.transforms import Size

tfds = deferred("tensorflow_datasets")

POPULAR = (
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "celeb_a",
    "downsampled_imagenet/32x32",
    "imagenet_resized/64x64",
    "lsun/bedroom",
)


def splits(
    name: str,
    data_dir: str,
    image_size: Size,
    channels: int,
    captioned: bool = False,
    normalization: str = "standard",
    channel_axis: str = "",
) -> Splits:
    """Read a TFDS set of images, or of tensors of numbers (tensor_sets.py).

    Args:
      name: the name that TFDS has for it.
      data_dir: where TFDS keeps its sets; see `default_dir`.
      image_size: the size to which images are brought; 0 keeps theirs.
      channels: 1, 3 or 4, to which they are converted; 0 keeps theirs.
      captioned: whether captions are read.
      normalization: of tensors, one of normalization.RULES.
      channel_axis: of tensors, one of array_axes.CHOICES.

    Raises:
      NotFound: where TFDS has no set of this name.
      UserError: for a set that has neither images of uint8 nor one tensor of numbers.
    """
    made = prepared(name, default_dir(data_dir))
    features = dict(made.info.features)
    classes = _classes(features)
    names = tuple(features["label"].names) if classes else ()
    if "image" not in features:
        _check_tensors(name, image_size, channels, captioned)
        read = functools.partial(train_and_test, made, bool(classes))
        return tensor_sets.splits(name, features, read, names, normalization, channel_axis)
    _check_images(name, features, channel_axis)
    train, test, rule = train_and_test(made, labeled=bool(classes))
    own, numbers = _captions(name, features) if captioned else None, None
    if own:
        unseen = itertools.chain(*train_and_test(made, labeled=bool(classes), blind=True)[:2])
        numbers = captions.CaptionNumbers(map(own, unseen))
    shape = tuple(features["image"].shape)
    if None in shape and not image_size:
        # only the metadata allow several sizes; `one` holds every image to the first one's shape
        shape = train[0]["image"].shape
    kept = transforms.fitted_shape(shape, image_size, channels)

    def one(example: dict[str, Any]) -> dict[str, Any]:
        image = transforms.fit(_uint8(name, example["image"]), image_size, channels)
        if image.shape != kept:
            raise UserError(
                f"data.name={name} has images of several sizes ({kept}, {image.shape}): "
                "set data.image_size, such as 64"
            )
        columns = {"image": image}
        if classes:
            columns["label"] = _label(name, example["label"], classes)
        if own:
            columns["caption"] = numbers.row(own(example))
        return columns

    sources = (mapped(source, one, kept) for source in (train, test))
    return Splits(*sources, kept, classes, names, numbers.every() if own else (), rule)


def _check_tensors(name: str, image_size: Size, channels: int, captioned: bool) -> None:
    """Refuse settings of images for a set that has none."""
    if image_size or channels or captioned:
        raise UserError(
            f"data.name={name} has no images: leave data.image_size, data.channels and "
            "config.text.encoder out"
        )


def _check_images(name: str, features: Mapping[str, Any], channel_axis: str) -> None:
    """Refuse a set without uint8 images before a decoder sees a file, and a key of arrays."""
    if channel_axis not in ("", "last"):
        raise UserError(
            f"data.channel_axis={channel_axis}: data.name={name} has images, whose channels are "
            "last; leave the key out"
        )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:
        raise UserError(
            f"data.name={name} has images of {dtype} {features['image'].shape}; uint8 (H, W, 1 or "
            "3) is needed"
        )


def _classes(features: Mapping[str, Any]) -> int:
    """Return the number of classes, 0 without labels of classes."""
    return getattr(features.get("label"), "num_classes", None) or 0


def _label(name: str, label: Any, classes: int) -> np.int32:
    if not 0 <= label < classes:
        raise UserError(f"data.name={name} has an image of label {label}, outside 0..{classes - 1}")
    return np.int32(label)


def _captions(name: str, features: dict) -> Callable[[dict], tuple[str, ...]]:
    """Return a function from an example to its captions.

    They are the feature 'captions' or 'caption': texts, or dictionaries with 'text'.
    """
    key = next((key for key in ("captions", "caption") if key in features), None)
    if key is None:
        raise UserError(
            f"data.name={name} has no feature 'captions' or 'caption' (it has "
            f"{', '.join(sorted(features))})"
        )

    def own(example: dict) -> tuple[str, ...]:
        texts = example[key]["text"] if isinstance(example[key], dict) else example[key]
        listed = [texts] if isinstance(texts, (bytes, str)) else list(texts)
        read = tuple(
            text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            for text in listed
        )
        if not any(text.strip() for text in read):
            raise UserError(
                f"data.name={name} has an image without a caption; choose another set, or "
                "config.text.encoder=''"
            )
        return tuple(text for text in read if text.strip())

    return own


def described(
    name: str, data_dir: str, image_size: Size, channels: int
) -> tuple[tuple[int, ...], int]:
    """Return the shape and the classes of a set as TFDS describes it; it need not be prepared.

    Args:
      name: the name of the set, such as 'cifar10'.
      data_dir: where TFDS keeps its sets; '' for its own place.
      image_size: the size to which images are brought; 0 keeps theirs.
      channels: 1, 3 or 4, to which they are converted; 0 keeps theirs.

    Returns:
      (image_shape, num_classes); 0 classes for a set without labels.

    Raises:
      NotFound: where TFDS has no set of this name.
      UserError: where the size of the images is not known.
    """
    features = dict(find_builder(name, default_dir(data_dir)).info.features)
    if "image" not in features or (None in features["image"].shape and not image_size):
        raise UserError(
            f"data.name={name} does not say how large its images are; set data.image_size, such as "
            "64"
        )
    classes = _classes(features)
    return transforms.fitted_shape(tuple(features["image"].shape), image_size, channels), classes


def _uint8(name: str, image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(
            f"data.name={name} has images of {image.dtype} {image.shape}; uint8 (H, W, 1 or 3) is "
            "needed"
        )
    return image


def train_and_test(
    builder: tfds.core.DatasetBuilder, labeled: bool, key: str = "image", blind: bool = False
) -> tuple[Source, Source, str]:
    """Read disjoint splits.

    The test split is 'test' if it is there (and labeled), else 'validation', else the last tenth of
    'train'.

    Args:
      builder: the builder of the set.
      labeled: whether the set has labels.
      key: the feature that holds the samples.
      blind: whether the images are left undecoded.

    Returns:
      (train, test, the rule in words).

    Raises:
      UserError: for a set without a split 'train'.
    """
    # a mocked TFDS set knows no split names
    known = set(builder.info.splits) or {"train", "test"}
    if "train" not in known:
        raise UserError(
            f"data.name={builder.info.full_name} has no split 'train' (it has "
            f"{', '.join(sorted(known))})"
        )
    read = _reader(builder, key, blind)
    for held_out in [s for s in ("test", "validation") if s in known]:
        test = read(held_out)
        if not labeled or test[0]["label"] >= 0:  # imagenet2012's test labels are -1
            return read("train"), test, f"split by the set itself, train and {held_out}"
    return read("train[:90%]"), read("train[90%:]"), "the last tenth of train is held out"


def _reader(builder: tfds.core.DatasetBuilder, key: str, blind: bool) -> Callable[[str], Source]:
    """Return a function that reads a split by its name."""
    image = builder.info.features[key]
    encoded = isinstance(image, tfds.features.Image) and not is_mocked(builder)
    decoders = (
        None if is_mocked(builder) else _decoders(builder.info.features, key, blind or encoded)
    )

    def read(split: str) -> Source:
        try:
            source = builder.as_data_source(split=split, decoders=decoders)
            return (
                source
                if blind or not encoded
                else _Decoded(source, image.shape[-1], builder.info.full_name)
            )
        except NotImplementedError as error:
            raise UserError(
                f"{builder.data_dir} is not prepared as {FORMAT}, the format that is read without "
                "TensorFlow: prepare it again into another data.data_dir with "
                f"{recipe(builder.info.full_name, 'DIR')}"
            ) from error

    return read


class _Unread:
    """A decoder of TFDS for a feature that is not used: its bytes are not decoded."""

    def setup(self, *, feature: Any) -> None: ...

    def decode_example_np(self, example: Any) -> None: ...

    decode_batch_example_np = decode_ragged_example_np = decode_example_np


def _decoders(features: Any, key: str, skip_image: bool) -> dict:
    """Return decoders by which TFDS decodes the samples, labels and captions alone.

    An image that is not an image file, such as a tensor, is decoded by TFDS too.
    """

    def unread(feature: Any) -> Any:
        if isinstance(feature, tfds.features.FeaturesDict):
            return {key: unread(value) for key, value in feature.items()}
        return unread(feature.feature) if isinstance(feature, tfds.features.Sequence) else _Unread()

    wanted = {key, "label", "caption", "captions"}
    rest = {other: unread(feature) for other, feature in features.items() if other not in wanted}
    return rest | ({"image": tfds.decode.SkipDecoding()} if skip_image else {})


class _Decoded:
    """Examples of TFDS whose images are decoded here.

    Only the formats of `transforms.open_image` are opened; TFDS opens any format.
    """

    def __init__(self, source: Any, channels: int | None, name: str) -> None:
        self.source, self.channels, self.name = source, channels, name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        example = dict(self.source[i])
        try:
            with transforms.open_image(io.BytesIO(example["image"])) as image:
                image = (
                    image.convert(transforms.MODES[self.channels])
                    if self.channels in transforms.MODES
                    else image
                )
                pixels = np.asarray(image)
        except transforms.UnreadableImage as error:
            raise UserError(
                f"data.name={self.name}: image {i} cannot be read ({error}); prepare the set again"
            ) from error
        example["image"] = pixels[..., None] if pixels.ndim == 2 else pixels
        return example
