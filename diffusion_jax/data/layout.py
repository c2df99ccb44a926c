"""What a folder of images means: which images are for training, and what their labels are.

`arrange` decides by the relative paths alone, which `tree.walk` lists, so that the rules can be
read and tested without files. The layouts (config.data.layout):

    classes   sub-folders are classes, whatever their names; a tenth of the images is held out
    splits    train/ holds the images for training, test/ (or val/) those that are held out; in
              each, sub-folders are classes
    flat      all images, wherever they are, without labels; a tenth is held out
    ''        the only one of them by which the folder can be read; a folder that can be read in two
              ways is refused
"""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import NamedTuple

from absl import logging

from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.data.held_out import FLAT, File
from diffusion_jax.data.splits import Split, find_splits
from diffusion_jax.data.tree import Parts, Tree, counted, ignored, listed, natural, shown_path

LAYOUTS = ("", "classes", "splits", "flat")
MOST_REPEATED = 1_000_000  # images reached a second time through links


class Arranged(NamedTuple):
    """The images of a folder with their splits and classes.

    Attributes:
      train: the images to train on.
      test: the images that are held out; None where they are still to be chosen from train.
      classes: the names of the classes in natural order; () without labels.
      rule: how the images were split, in words.
      roots: the folders of the two splits.
      dropped: what is not used, in words: folders without images, a second held-out split.
    """

    train: list[File]
    test: list[File] | None
    classes: tuple[str, ...]
    rule: str
    roots: tuple[Path, Path]
    dropped: list[str]


def arrange(root: Path, tree: Tree, layout: str = "") -> Arranged:
    """Decide what the images below a folder are.

    Args:
      root: the folder, for paths and messages.
      tree: what `walk` found there.
      layout: one of LAYOUTS.

    Raises:
      UserError: for an unknown layout, a folder that can be read in two ways, and one file in two
        classes or in both splits.
    """
    if layout not in LAYOUTS:
        raise unknown("config.data.layout", layout, LAYOUTS[1:])
    repeated = _repeated(root, tree)
    images = sorted([*tree.images, *repeated])
    if not images:
        held = counted(tree, (), "; it holds ", ", which are not read as images")
        raise UserError(f"data.path={root} holds no images{held}")
    train, test, unused = find_splits(root, tree, images, layout)
    found, (train, test) = _count(train, test), _once(root, repeated, train, test)
    if again := found - _count(train, test):
        unused.append(f"{again} images that a link shows again")
    wrapper, dropped = shown_path(train.root), [*unused, *_without_images(tree, train)]
    if test:
        names = _class_names(root, train, test)
        rule = f"split by {shown_path(train.root)}/ and {shown_path(test.root)}/"
        return Arranged(
            _files(root, train),
            _files(root, test),
            names,
            rule,
            (root.joinpath(*train.root), root.joinpath(*test.root)),
            dropped,
        )
    names = tuple(sorted({label for _, label in train.images} - {""}, key=natural))
    rule = f"a tenth{f' of {wrapper}/' if wrapper else ''} is held out by file name"
    folder = root.joinpath(*train.root)
    return Arranged(_files(root, train), None, names, rule, (folder, folder), dropped)


def warn_of_unused(path: str, listing: Tree, found: Arranged, captioned: bool = False) -> None:
    """Give one warning of what a folder holds and is not used.

    Args:
      path: data.path.
      listing: what is in the folder.
      found: what of it is used.
      captioned: whether files of captions are used, too.
    """
    expected = (
        (lambda name: name == "metadata.jsonl" or name.lower().endswith(".txt"))
        if captioned
        else (lambda name: False)
    )
    files = ignored(listing, expected)
    unused = [*([f"{files}"] if files else []), *found.dropped]
    if unused:
        logging.warning("data.path=%s: not used: %s", printable(path), "; ".join(unused))


def check_classes(path: str, classes: tuple[str, ...], left: set[str], name: str = "image") -> None:
    """Refuse a class without readable training files, which would renumber the other classes.

    Args:
      path: data.path.
      classes: the names of the classes.
      left: the classes that have readable files.
      name: what a file holds, for the message.

    Raises:
      UserError: naming the first class that has none.
    """
    if empty := [each for each in classes if each not in left]:
        raise UserError(
            f"data.path={path}: no training {name} of class {printable(empty[0])} is readable; "
            "replace its files, or move its folder away"
        )


def _class_names(root: Path, train: Split, test: Split) -> tuple[str, ...]:
    """Return the names of the classes; UserError where the two splits do not agree on them."""
    known, found = ({label for _, label in split.images} - {""} for split in (train, test))
    where = f"data.path={root}"
    if strange := sorted(found - known, key=natural):
        near = [name for name in known if name.lower() == strange[0].lower()]
        hint = f" (there is {shown_path(near)})" if near else ""
        raise UserError(
            f"{where}: the test images have a label '{shown_path(strange[:1])}' that no train "
            f"image has{hint}; give both splits the same folders, or use all images without "
            f"labels{FLAT}"
        )
    if known and any(not label for _, label in test.images):
        raise UserError(
            f"{where}: the train images are in sub-folders (labels), the test images are not; "
            f"put the test images into the same folders, or use all images without labels{FLAT}"
        )
    return tuple(sorted(known, key=natural))


def _files(root: Path, split: Split) -> list[File]:
    n = len(split.root)
    return [
        File(root.joinpath(*image), "/".join(image[n:]), label) for image, label in split.images
    ]


def _repeated(root: Path, tree: Tree) -> dict[Parts, Parts]:
    """Return {image that is reached once more through a link: where it was found first}."""
    repeated = {}
    for parts, first in tree.again:
        for image in itertools.islice(tree.images, bisect.bisect_left(tree.images, first), None):
            if image[: len(first)] != first:
                break
            repeated[(*parts, *image[len(first) :])] = image
        if len(repeated) > MOST_REPEATED:
            raise UserError(
                f"data.path={root} has links by which {MOST_REPEATED:,} images are found again; "
                "remove them"
            )
    return repeated


def _count(*splits: Split | None) -> int:
    return sum(len(split.images) for split in splits if split)


def _once(
    root: Path, repeated: dict[Parts, Parts], train: Split, test: Split | None
) -> tuple[Split, Split | None]:
    """Drop the images that are listed a second time.

    Raises:
      UserError: for one file in two classes or in both splits.
    """
    if not repeated:
        return train, test
    owners, second = {}, set()
    found = [
        (image, label, split is test)
        for split in (train, test)
        if split
        for image, label in split.images
    ]
    for image, label, held in sorted(found, key=lambda place: place[0] in repeated):
        owner = owners.setdefault(repeated.get(image, image), (image, label, held))
        if owner[0] == image:
            continue
        if owner[1:] != (label, held):
            what = (
                "the training and the test split"
                if owner[2] != held
                else f"the classes {listed([owner[1], label])}"
            )
            raise UserError(
                f"data.path={root}: {shown_path(owner[0])} and {shown_path(image)} are one file, "
                f"by a link, in {what}; remove one of them, or use all images once and without "
                "labels by --config.data.layout=flat"
            )
        second.add(image)
    train, test = (
        split and split._replace(images=[x for x in split.images if x[0] not in second])
        for split in (train, test)
    )
    return train, test


def _without_images(tree: Tree, train: Split) -> list[str]:
    """Describe the folders next to those of the classes that hold no images."""
    n = len(train.root)
    used = {image[n] for image, _ in train.images if len(image) > n + 1}
    unused = [
        f for f in tree.folders if len(f) == n + 1 and f[:n] == train.root and f[n] not in used
    ]
    unused.sort(key=lambda folder: natural(folder[n]))
    return [
        f"{shown_path(folder)}/, which holds nothing that is read{counted(tree, folder, ' (', ')')}"
        for folder in unused
    ]
