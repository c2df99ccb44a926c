"""Which folders below a folder of images are splits and which are classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.tree import Parts, Tree, listed, natural, shown_path

TRAIN = ("train", "training")
# the first kind that is there is held out
TEST = (("test", "testing"), ("val", "valid", "validation", "dev"))

# names of folders that look like those of splits but have more words: train_images, training_set,
# val2017
SPLIT_LIKE = re.compile(
    rf"({'|'.join((*TRAIN, *TEST[0], *TEST[1]))})"
    r"([ _-]?(set|sets|images|imgs|data|split|\d{4}))+",
    re.I,
)


class Split(NamedTuple):
    """The images of one split.

    Attributes:
      root: the folder of the split.
      images: the images with their labels.
    """

    root: Parts
    images: list[tuple[Parts, str]]


def find_splits(
    root: Path, tree: Tree, images: list[Parts], layout: str
) -> tuple[Split, Split | None, list[str]]:
    """Find the splits of a folder.

    Args:
      root: the folder, for messages.
      tree: what is in the folder.
      images: the images that are used, by their relative paths.
      layout: config.data.layout: 'flat', 'classes', 'splits', or '' to find out.

    Returns:
      (train, test or None, what is not used, in words).

    Raises:
      UserError: for a folder that can be read in two ways, or not at all by the layout.
    """
    if layout == "flat":
        return Split((), [(image, "") for image in images]), None, []
    if layout == "classes":
        return _labeled(root, images, (), strict=False), None, []
    prefix = _unwrapped(images, (), is_split)
    stray, folders = _level(images, prefix)
    train = [name for name in folders if name.lower() in TRAIN]
    tests = [[name for name in folders if name.lower() in kind] for kind in TEST]
    others = [name for name in folders if not is_split(name)]
    if not layout and not train and not any(tests):
        return _labeled(root, images, prefix, strict=True), None, []
    n = len(prefix)
    for folder in tree.folders:
        if (
            folder[:n] == prefix
            and len(folder) == n + 1
            and is_split(folder[n])
            and folder[n] not in folders
        ):
            raise UserError(
                f"{root.joinpath(*folder)} holds no images; add some, or remove it to hold out a "
                "tenth of the others"
            )
    _check_splits(root, prefix, stray, folders, train, tests, others, layout)
    held = [name for names in tests for name in names]
    parts = [_labeled(root, folders[train[0]], (*prefix, train[0]), strict=not layout)]
    if held:
        known = {label for _, label in parts[0].images}
        parts.append(
            _labeled(root, folders[held[0]], (*prefix, held[0]), strict=not layout, known=known)
        )
    unused = [
        f"{shown_path((*prefix, name))}/ ({len(folders[name])} images)"
        for name in (*held[1:], *(others if layout else ()))
    ]
    unused += [f"{len(stray)} images next to {train[0]}/"] if stray else []
    return parts[0], parts[1] if held else None, unused


def is_split(name: str) -> bool:
    """Return whether a folder of this name is a split, such as 'train' or 'test'.

    Args:
      name: the name of a folder, in any case.
    """
    return name.lower() in (*TRAIN, *TEST[0], *TEST[1])


def _check_splits(
    root: Path,
    prefix: Parts,
    stray: list[Parts],
    folders: dict[str, list[Parts]],
    train: list[str],
    tests: list[list[str]],
    others: list[str],
    layout: str,
) -> None:
    """Refuse folders named like splits that can be read in another way, or in no way at all."""
    where = f"data.path={root.joinpath(*prefix)}"
    chosen = _as_classes(where, prefix)
    for names in (train, *tests):
        if len(names) > 1:
            raise UserError(
                f"{where} has {listed(names)}, which mean the same; keep one of them, or, if the "
                f"folders are classes, set {chosen}"
            )
    held = [name for names in tests for name in names]
    if not train:
        there = listed(held or list(folders) or ["images"])
        raise UserError(
            f"{where} has {there}, but no train/; name the folder of the training images train/, "
            f"or, if the folders are classes, set {chosen}"
        )
    if layout:
        return
    if stray:
        inside, outside = len(folders[train[0]]), len(stray)
        flat = outside + sum(map(len, folders.values()))
        raise _two_readings(
            where,
            f"{train[0]}/ holds the {inside} training images, and the {outside} next to it are not "
            "used",
            f"all {flat} are used, without labels",
            "--config.data.layout=flat",
        )
    if others:
        unused = f"{listed(others)} {'is' if len(others) == 1 else 'are'} not used"
        raise _two_readings(
            where,
            f"{train[0]}/ holds the training images, and {unused}",
            f"{listed(list(folders))} are classes",
            chosen,
        )


def _two_readings(where: str, first: str, second: str, chosen: str) -> UserError:
    return UserError(
        f"{where} can be read in two ways: {first} (--config.data.layout=splits), "
        f"or {second} ({chosen}); choose one"
    )


def _labeled(
    root: Path, images: list[Parts], prefix: Parts, *, strict: bool, known: Iterable[str] = ()
) -> Split:
    """Label the images of a split by their folders.

    Args:
      root: the folder, for messages.
      images: the images of the split.
      prefix: the folder of the split.
      strict: whether a folder that can be read in another way is refused.
      known: the labels of the training split.
    """
    if strict or prefix:
        prefix = _unwrapped(images, prefix, lambda name: name in known)
    where = f"data.path={root.joinpath(*prefix)}"
    stray, folders = _level(images, prefix)
    if stray and folders:
        raise UserError(
            f"{where} can be read in two ways, as it has images both in sub-folders and next to "
            f"them ({shown_path(stray[0][-1:])}): sub-folders are classes, and then move the "
            f"{len(stray)} next to them into one, or all images are used without labels "
            "(--config.data.layout=flat); choose one"
        )
    if strict and folders:
        _check_nesting(where, images, prefix, folders)
    return Split(prefix, [(image, image[len(prefix)] if folders else "") for image in images])


def _check_nesting(
    where: str, images: list[Parts], prefix: Parts, folders: dict[str, list[Parts]]
) -> None:
    """Refuse folders that all hold folders of the same names, as either could be the classes."""
    n, outer, chosen = len(prefix), listed(list(folders)), _as_classes(where, prefix)
    alike = [name for name in folders if SPLIT_LIKE.fullmatch(name)]
    if any(name.lower().startswith(TRAIN) for name in alike):
        raise UserError(
            f"{where} can be read in two ways: {outer} are classes ({chosen}), or {listed(alike)} "
            f"{'are splits' if len(alike) > 1 else 'is a split'}, and then name the folders train/ "
            "and test/; choose one"
        )
    if (
        len(folders) > 1
        and all(map(is_split, folders))
        and any(name.lower() in TRAIN for name in folders)
    ):
        raise UserError(
            f"{where} holds {outer}: name this folder as data.path, or, if they are classes, "
            f"set {chosen}"
        )
    inner = [{image[n + 1] for image in below if len(image) > n + 2} for below in folders.values()]
    names = sorted(set.intersection(*inner), key=natural)
    if any(len(image) == n + 2 for image in images) or not (
        len(names) > 1 or any(map(is_split, names))
    ):
        return
    raise UserError(
        f"{where} can be read in two ways: {outer} are classes ({chosen}), or {listed(names)}, "
        "which are in each of them, are classes or splits, and then put the folders of one name "
        "together; choose one"
    )


def _as_classes(where: str, prefix: Parts) -> str:
    """Return what to type so that the folders at 'data.path=PLACE' (where) are the classes."""
    if any(map(is_split, prefix)):
        return "--config.data.layout=splits"
    return (
        f"--config.{where} --config.data.layout=classes"
        if prefix
        else "--config.data.layout=classes"
    )


def _unwrapped(images: list[Parts], prefix: Parts, keeps: Callable[[str], bool]) -> Parts:
    """Return the folder that holds the classes, below wrappers that hold a single folder each."""
    while True:
        stray, folders = _level(images, prefix)
        if (
            stray
            or len(folders) != 1
            or keeps(*folders)
            or any(len(image) == len(prefix) + 2 for image in images)
        ):
            return prefix
        prefix = (*prefix, *folders)


def _level(images: list[Parts], prefix: Parts) -> tuple[list[Parts], dict[str, list[Parts]]]:
    """Return (the images directly in a folder, {sub-folder: the images below it})."""
    n, stray, folders = len(prefix), [], {}
    for image in images:
        (stray if len(image) == n + 1 else folders.setdefault(image[n], [])).append(image)
    return stray, {name: folders[name] for name in sorted(folders, key=natural)}
