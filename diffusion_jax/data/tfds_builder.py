"""Builders of the sets of tensorflow-datasets, checked before TFDS reads their files."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from diffusion_jax.core import reading
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError, unknown

digits = deferred("diffusion_jax.data.digits")
tfds = deferred("tensorflow_datasets")

AS_FILES = ("mnist", "fashion_mnist")  # are also read from the four files of their authors
FORMAT = "array_record"  # the format that is written and read without TensorFlow

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

# name or name/configuration, with or without a version; no namespace, whose sets are code from
# elsewhere, and no arguments
_NAME = re.compile(r"[A-Za-z_]\w*(/\w[\w+.-]*)?(:(\d+|\*)(\.(\d+|\*)){2})?")


class NotFound(Exception):
    """tensorflow-datasets has no set of this name."""


def default_dir(data_dir: str) -> str:
    """Return where TFDS keeps its sets.

    Args:
      data_dir: config.data.data_dir; '' for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    return os.path.expanduser(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )


def prepared(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Return the TFDS builder of a set, and prepare the set if that was not done.

    Several processes may start at once.

    Args:
      name: the name of the set, such as 'cifar10' or 'name/configuration:1.0.0'.
      data_dir: where TFDS keeps its sets, as `default_dir` returns it.

    Raises:
      NotFound: where TFDS has no set of this name.
      UserError: where the set cannot be prepared.
    """
    with _quiet(name == "digits"):
        builder = find_builder(name, data_dir)
        if _is_prepared(builder) or is_mocked(builder):
            return builder
    if name != "digits" and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data.name={name} is not prepared in {data_dir}, and preparing needs TensorFlow once: "
            f"pip install 'diffusion_jax[tfds-prepare]', then {recipe(name, data_dir)}"
            + "; or name the folder of its four idx files: --config.data.path=FOLDER"
            * (name in AS_FILES)
        )
    with _quiet(name == "digits"):
        try:
            # writes a temporary folder and renames it: never half a set
            builder.download_and_prepare()
        # the network, the disk, a manual download that is missing, another process that was first
        except Exception as error:
            if not _is_prepared(builder):
                raise UserError(
                    f"data.name={name} could not be prepared in {data_dir} "
                    f"({type(error).__name__}: {_line(error)}); fix this, or choose another "
                    "data.data_dir"
                ) from error
            logging.info("another process has prepared %s", name, exc_info=error)
        return find_builder(name, data_dir)


def find_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Return the TFDS builder of a set, which may not be prepared.

    Args:
      name: the name of the set, such as 'cifar10' or 'name/configuration:1.0.0'.
      data_dir: where TFDS keeps its sets, as `default_dir` returns it.

    Raises:
      NotFound: where TFDS has no set of this name.
      UserError: for a name that is not allowed, and for a set with classes that are not TFDS's own.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"data.name={name} cannot be used: write a name, name/configuration, or either with a "
            "version such as :1.0.0"
        )
    base = tfds.core.naming.parse_builder_name_kwargs(name)[0].name
    check_features(name, Path(data_dir) / ("sklearn_digits" if name == "digits" else base))
    if name == "digits":
        return digits.SklearnDigits(data_dir=data_dir, file_format=FORMAT)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        return (
            builder
            if _is_prepared(builder)
            else tfds.builder(name, data_dir=data_dir, file_format=FORMAT)
        )
    except tfds.core.DatasetNotFoundError as error:
        raise NotFound(name) from error
    # a malformed name, a configuration that does not exist, a package that is missing
    except Exception as error:
        base, _, config = name.partition("/")
        if base.isidentifier() and config and tfds.builder_cls(base).builder_configs:
            raise unknown(
                f"configuration of {base}", config, tfds.builder_cls(base).builder_configs
            ) from error
        raise UserError(f"data.name={name} cannot be used: {_line(error)}") from error


def check_features(name: str, folder: Path) -> None:
    """Refuse a prepared set whose features.json names a class that is not one of TFDS's own.

    TFDS would import the class when it reads the file.

    Args:
      name: the name of the data set, for messages.
      folder: the folder of the set, in which features.json lies under a version, or under a
        configuration and a version.

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
                            f"{where} names the Python class {found:.200}, which is not one of "
                            "tensorflow-datasets' own features; such a set is not read"
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
    """Refuse a folder with a pipe or a device in it, for which TFDS would wait forever."""
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.exists() and not (each.is_dir() or each.is_file()):
            raise UserError(
                f"data.name={name}: '{each}' is not a regular file; prepare the set again"
            )


def _class_names(value: Any) -> Iterator[str]:
    """Yield the names of classes in a features.json, in its present and its older form."""
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
                yield "(a text that is not JSON)"
            else:
                yield from _class_names(inner)
        else:
            yield from _class_names(item)


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # (builder.is_prepared() logs a warning when the answer is no)
    return (builder.data_path / "dataset_info.json").exists()


def is_mocked(builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether tfds.testing.mock_data is active, which serves random examples.

    Args:
      builder: any builder of TFDS.
    """
    return builder.as_data_source.__module__.endswith("testing.mocking")


def recipe(name: str, data_dir: str) -> str:
    """Return the shell command that prepares a set.

    Args:
      name: the name of the set, as TFDS takes it.
      data_dir: where the set is to be kept.
    """
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='{FORMAT}')"
    return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


@contextlib.contextmanager
def _quiet(silent: bool) -> Iterator[None]:
    """Silence a set that is prepared in two seconds; a download shows the progress bars of TFDS."""
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
