"""Sets that tensorflow-datasets knows by name, prepared as array_record, read without TensorFlow.

Our own digits are prepared here on first use. Any other set that is not prepared yet needs
TensorFlow, once, for that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from diffusion_jax import reading
from diffusion_jax.data import captions, transforms
from diffusion_jax.data.digits import SklearnDigits
from diffusion_jax.data.sources import Source, mapped
from diffusion_jax.errors import UserError, unknown

FORMAT = "array_record"  # the one format that is written and read without TensorFlow

POPULAR = (
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "celeb_a",
    "downsampled_imagenet/32x32",
)


POPULAR += ("imagenet_resized/64x64", "lsun/bedroom")


# A prepared set names the classes of its features in features.json, and TFDS imports what is named
# there. These are TFDS's own.
FEATURES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict",
        "top_level_feature.TopLevelFeature",
        "image_feature.Image",
        "labeled_image.LabeledImage",
        "class_label_feature.ClassLabel",
        "tensor_feature.Tensor",
        "scalar.Scalar",
        "text_feature.Text",
        "sequence_feature.Sequence",
        "bounding_boxes.BBoxFeature",
        "translation_feature.Translation",
        "translation_feature.TranslationVariableLanguages",
        "audio_feature.Audio",
        "video_feature.Video",
        "dataset_feature.Dataset",
        "feature.Optional",
    )
}


# name, name/configuration, each with :1.0.0; no namespace, whose sets are code from elsewhere, and
# no arguments
_NAME = re.compile(r"[A-Za-z_]\w*(/\w[\w+.-]*)?(:(\d+|\*)(\.(\d+|\*)){2})?")


class NotFound(Exception):
    """tensorflow-datasets has no set of this name."""


def default_dir(data_dir: str) -> str:
    """Where TFDS keeps its sets: data_dir, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return os.path.expanduser(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )


def splits(
    name: str, data_dir: str, image_size: int, channels: int, captioned: bool = False
) -> tuple[Source, Source, tuple, int, tuple, tuple, None, str]:
    """(train, test, image_shape, num_classes, class_names, captions, None, split rule) of a TFDS
    set: the fields of a Dataset.

    Raises NotFound.
    """
    builder = _prepared(name, default_dir(data_dir))
    features = dict(builder.info.features)
    if "image" not in features:
        raise UserError(
            f"data.name={name} has no feature 'image' (it has {', '.join(sorted(features))})"
        )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:  # said before a decoder sees a file
        raise UserError(
            f"data.name={name} has images of {dtype} {features['image'].shape}; uint8 (H, W, 1 or 3) is needed"
        )
    classes = getattr(features.get("label"), "num_classes", None) or 0
    names = tuple(features["label"].names) if classes else ()
    train, test, rule = _train_and_test(builder, labelled=bool(classes))
    own, numbers = _captions(name, features) if captioned else None, None
    if own:
        unseen = _train_and_test(builder, labelled=bool(classes), blind=True)[:2]
        numbers = captions.Numbers(own(example) for split in unseen for example in split)
    shape = tuple(features["image"].shape)
    if None in shape and not image_size:
        shape = (
            train[0]["image"].shape
        )  # variable sizes in the metadata only; `one` holds every image to the first one's shape
    kept = transforms.fitted_shape(shape, image_size, channels)

    def one(example: dict) -> dict:
        image = transforms.fit(_uint8(name, example["image"]), image_size, channels)
        if image.shape != kept:
            raise UserError(
                f"data.name={name} has images of several sizes ({kept}, {image.shape}): set data.image_size, to 64 say"
            )
        if classes and not 0 <= example["label"] < classes:
            raise UserError(
                f"data.name={name} has an image of label {example['label']}, outside 0..{classes - 1}"
            )
        told = {"caption": numbers.row(own(example))} if own else {}
        return {"image": image} | ({"label": np.int32(example["label"])} if classes else {}) | told

    every = numbers.every() if own else ()
    return (
        mapped(train, one, kept),
        mapped(test, one, kept),
        kept,
        classes,
        names,
        every,
        None,
        rule,
    )


def _captions(name: str, features: dict) -> Callable[[dict], tuple[str, ...]]:
    """example -> its captions: the feature 'captions' or 'caption', texts or dicts with 'text'."""
    key = next((key for key in ("captions", "caption") if key in features), None)
    if key is None:
        raise UserError(
            f"data.name={name} has no feature 'captions' or 'caption' (it has {', '.join(sorted(features))})"
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
                f"data.name={name} has an image without a caption; choose another set, or config.text.encoder=''"
            )
        return tuple(text for text in read if text.strip())

    return own


def described(
    name: str, data_dir: str, image_size: int, channels: int
) -> tuple[tuple[int, ...], int]:
    """(image_shape, num_classes) as TFDS describes a set, which need not be prepared. Raises
    NotFound.
    """
    features = dict(_builder(name, default_dir(data_dir)).info.features)
    if "image" not in features or (None in features["image"].shape and not image_size):
        raise UserError(
            f"data.name={name} does not say how large its images are; set data.image_size, to 64 say"
        )
    classes = getattr(features.get("label"), "num_classes", None) or 0
    return transforms.fitted_shape(tuple(features["image"].shape), image_size, channels), classes


def _uint8(name: str, image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(
            f"data.name={name} has images of {image.dtype} {image.shape}; uint8 (H, W, 1 or 3) is needed"
        )
    return image


def _train_and_test(builder, labelled: bool, blind: bool = False) -> tuple[Source, Source, str]:
    """Disjoint splits and their rule: test if it is there (and labelled), else validation, else the
    last tenth of train.

    blind: the images are not decoded.
    """
    known = set(builder.info.splits) or {
        "train",
        "test",
    }  # (a mocked TFDS set knows no split names)
    if "train" not in known:
        raise UserError(
            f"data.name={builder.info.full_name} has no split 'train' (it has {', '.join(sorted(known))})"
        )
    read = _reader(builder, blind)
    for held_out in [s for s in ("test", "validation") if s in known]:
        test = read(held_out)
        if not labelled or test[0]["label"] >= 0:  # imagenet2012's test labels are -1
            return read("train"), test, f"split by the set itself, train and {held_out}"
    return read("train[:90%]"), read("train[90%:]"), "the last tenth of train is held out"


def _reader(builder, blind: bool):

    image = builder.info.features["image"]
    encoded = isinstance(image, tfds.features.Image) and not _is_mocked(builder)
    decoders = None if _is_mocked(builder) else _decoders(builder.info.features, blind or encoded)

    def read(split: str):
        try:
            source = builder.as_data_source(split=split, decoders=decoders)
            return (
                source
                if blind or not encoded
                else _Decoded(source, image.shape[-1], builder.info.full_name)
            )
        except NotImplementedError as error:
            raise UserError(
                f"{builder.data_dir} is not prepared as {FORMAT}, the format that is read without TensorFlow: "
                f"prepare it again into another data.data_dir with {_recipe(builder.info.full_name, 'DIR')}"
            ) from error

    return read


class _Unread:
    """A decoder of TFDS for a feature that is not used: the bytes of its pictures are not opened."""

    def setup(self, *, feature: Any) -> None: ...

    def decode_example_np(self, example: Any) -> None: ...

    decode_batch_example_np = decode_ragged_example_np = decode_example_np


def _decoders(features: Any, skip_image: bool) -> dict:
    """Decoders by which TFDS decodes labels and captions alone, and an image that is no picture
    file, such as a tensor.
    """

    def unread(feature: Any) -> Any:
        if isinstance(feature, tfds.features.FeaturesDict):
            return {key: unread(value) for key, value in feature.items()}
        return unread(feature.feature) if isinstance(feature, tfds.features.Sequence) else _Unread()

    wanted = {"image", "label", "caption", "captions"}
    rest = {key: unread(feature) for key, feature in features.items() if key not in wanted}
    return rest | ({"image": tfds.decode.SkipDecoding()} if skip_image else {})


class _Decoded:
    """Examples of TFDS whose images are decoded here: in the formats of `transforms.open_image`
    alone, where TFDS takes any.
    """

    def __init__(self, source: Any, channels: int | None, name: str):
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
        except Exception as error:  # decoders raise what they like
            raise UserError(
                f"data.name={self.name}: image {i} cannot be read ({error}); prepare the set again"
            ) from error
        example["image"] = pixels[..., None] if pixels.ndim == 2 else pixels
        return example


def _prepared(name: str, data_dir: str):
    """The TFDS builder of a set, prepared if it was not. Safe when several processes start at once."""
    with _quiet(name == "digits"):
        builder = _builder(name, data_dir)
        if _is_prepared(builder) or _is_mocked(builder):
            return builder
    if name != "digits" and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data.name={name} is not prepared in {data_dir}, and preparing needs TensorFlow once: "
            f"pip install 'diffusion_jax[tfds-prepare]', then {_recipe(name, data_dir)}"
        )
    with _quiet(name == "digits"):
        try:
            # writes a temporary folder and renames it: never half a set
            builder.download_and_prepare()
        except Exception as error:  # the network, the disk, a set that wants a manual download, or another process was first
            if not _is_prepared(builder):
                raise UserError(
                    f"data.name={name} could not be prepared in {data_dir} ({type(error).__name__}: {_line(error)}); "
                    f"mend that, or choose another data.data_dir"
                ) from error
        return _builder(name, data_dir)


def _builder(name: str, data_dir: str):

    if not _NAME.fullmatch(name):
        raise UserError(
            f"data.name={name} cannot be used: write a name, name/configuration, or either with a version "
            "such as :1.0.0"
        )
    base = tfds.core.naming.parse_builder_name_kwargs(name)[0].name
    check_features(name, Path(data_dir) / ("sklearn_digits" if name == "digits" else base))
    if name == "digits":
        return SklearnDigits(data_dir=data_dir, file_format=FORMAT)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        return (
            builder
            if _is_prepared(builder)
            else tfds.builder(name, data_dir=data_dir, file_format=FORMAT)
        )
    except tfds.core.DatasetNotFoundError as error:
        raise NotFound(name) from error
    except (
        Exception
    ) as error:  # a malformed name, a configuration that does not exist, a package that is missing
        base, _, config = name.partition("/")
        if base.isidentifier() and config and tfds.builder_cls(base).builder_configs:
            raise unknown(
                f"configuration of {base}", config, tfds.builder_cls(base).builder_configs
            ) from error
        raise UserError(f"data.name={name} cannot be used: {_line(error)}") from error


def check_features(name: str, folder: Path) -> None:
    """Refuse a prepared set whose features.json names a class that is not TFDS's own, before TFDS
    reads and imports it.

    Args:
      name: of the data set, for messages.
      folder: of the set, in which features.json lies under a version, or a configuration and a
        version.

    Raises:
      UserError: for such a file, and for one that cannot be read.
    """
    level = [folder]
    for _ in range(3):
        for each in level:
            _only_files(name, each)
            if os.path.lexists(each / "features.json"):
                for found in _class_names(reading.json_file(each / "features.json")):
                    if found not in FEATURES:
                        where = f"data.name={name}: '{each / 'features.json'}'"
                        raise UserError(
                            f"{where} names the Python class {found:.200}, which is not one of tensorflow-datasets' "
                            "own features; such a set is not read"
                        )
        with contextlib.suppress(OSError):
            level = [
                below
                for each in level
                if each.is_dir()
                for below in each.iterdir()
                if below.is_dir()
            ]


def _only_files(name: str, folder: Path) -> None:
    """UserError for a folder of a data set with a pipe or a device in it, for which TFDS would wait
    for ever.
    """
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.exists() and not (each.is_dir() or each.is_file()):
            raise UserError(
                f"data.name={name}: '{each}' is not a regular file; prepare the set again"
            )


def _class_names(value: Any) -> Iterator[str]:
    """The names of classes anywhere in a features.json, in its present form and in the older one,
    with JSON inside of text.
    """
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in pairs:
        if key in ("pythonClassName", "python_class_name", "type") and isinstance(item, str):
            yield item
        elif isinstance(item, str) and item.lstrip()[:1] in ("{", "["):
            try:
                inner = json.loads(item)
                reading.check(inner, reading.anything, "features.json")
            except (ValueError, RecursionError):
                yield "(a text that is no JSON)"
            else:
                yield from _class_names(inner)
        else:
            yield from _class_names(item)


def _is_prepared(builder) -> bool:
    return (
        builder.data_path / "dataset_info.json"
    ).exists()  # builder.is_prepared() logs a warning when the answer is no


def _is_mocked(builder) -> bool:
    """Inside tfds.testing.mock_data, which serves random examples and prepares nothing."""
    return builder.as_data_source.__module__.endswith("testing.mocking")


def _recipe(name: str, data_dir: str) -> str:
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='{FORMAT}')"
    return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


@contextlib.contextmanager
def _quiet(silent: bool) -> Iterator[None]:
    """Not a word about a set that takes two seconds to prepare; a download shows TFDS's own
    progress bars.
    """
    if not silent:
        yield
        return

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        logging.set_verbosity(verbosity)
