"""What a folder of images means: which of its files are images, which are for training, and what
their labels are.

`walk` lists the folder and follows links; `arrange` decides by the relative paths alone, so that
the rules can be read and tested without files. The layouts (config.data.layout):

    classes   the sub-folders are the classes, whatever their names; a tenth of the images is held out
    splits    train/ holds the images for training, test/ (or val/) those held out; in each, sub-folders are classes
    flat      all images, wherever they are, without labels; a tenth is held out
    ''        whichever of them is the only way to read the folder; a folder that can be read in two ways is refused
"""

from __future__ import annotations

import bisect
import collections
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError, printable, unknown

LAYOUTS = ("", "classes", "splits", "flat")
TRAIN = ("train", "training")

TEST = (
    ("test", "testing"),
    ("val", "valid", "validation", "dev"),
)  # the first kind that is there is held out

SKIPPED = (
    "__MACOSX",
    "lost+found",
    "@eaDir",
)  # folders that operating systems leave, as are all hidden ones

HELD_OUT = 0.1  # of the images, where the folder is not split
MOST_REPEATED = 1_000_000  # images reached a second time through links


# names of folders that look like those of splits, but have more words: train_images, training_set,
# val2017
SPLIT_LIKE = re.compile(
    rf"({'|'.join((*TRAIN, *TEST[0], *TEST[1]))})([ _-]?(set|sets|images|imgs|data|split|\d{{4}}))+",
    re.I,
)

BROKEN = "broken link"
FLAT = " (--config.data.layout=flat)"
Parts = tuple[str, ...]  # a path relative to data.path


class Tree(NamedTuple):
    """What `walk` found below a folder, by relative paths in text order."""

    images: list[Parts]
    folders: list[Parts]
    ignored: list[
        tuple[Parts, str]
    ]  # files that are no images, and why: their ending, 'no ending', 'broken link', ...
    again: list[tuple[Parts, Parts]]  # links to what is there already, and where that is


class File(NamedTuple):
    """An image file."""

    path: Path
    name: str  # relative to its split's folder, with '/'
    label: str  # the name of its class, '' if there are none


class Arranged(NamedTuple):
    """What the images of a folder are."""

    train: list[File]
    test: list[File] | None  # None: `held_out` is to choose from train
    classes: tuple[str, ...]  # names of folders, in natural order; () without labels
    rule: str  # how the images were split, for people
    roots: tuple[Path, Path]  # the folders of the two splits
    dropped: list[
        str
    ]  # what is not used, for people: folders without images, a second held-out split


class _Split(NamedTuple):
    root: Parts
    images: list[tuple[Parts, str]]  # and their labels


# ---- listing
def walk(root: Path, endings: Iterable[str], is_image: Callable[[str], bool]) -> Tree:
    """List all that is below a folder: links are followed, each folder and file is visited once.

    Args:
      root: the folder.
      endings: those of images, in lower case ('.png').
      is_image: whether a file without an ending is an image, by its content.

    Raises:
      UserError: for a folder that cannot be read.
    """
    tree, real_root = Tree([], [], [], []), os.path.realpath(root)
    places = {real_root: ()}  # the real path of each folder -> its relative path
    targets, listed = (
        {},
        set(),
    )  # the same of the files behind links; the relative paths of all images
    folders, folder_links, file_links = [((), real_root)], collections.deque(), collections.deque()

    def enter(parts: Parts, real: str) -> None:
        first = places.get(real)
        if _inside(real_root, real) or (first is not None and parts[: len(first)] == first):
            tree.ignored.append((parts, "link to a folder above"))
        elif first is None:
            places[real] = parts
            tree.folders.append(parts)
            folders.append((parts, real))
        else:
            tree.again.append((parts, first))

    def add(parts: Parts, path: str, is_file: bool) -> None:
        ending = os.path.splitext(parts[-1])[1].lower()
        if not is_file:
            tree.ignored.append((parts, "special file" if os.path.exists(path) else BROKEN))
        elif ending in endings or (not ending and is_image(path)):
            tree.images.append(parts)
            listed.add(parts)
        else:
            tree.ignored.append((parts, ending or "without an ending"))

    def add_link(parts: Parts, path: str) -> None:
        real = os.path.realpath(path)
        folder, name = os.path.split(real)
        own = (*places[folder], name) if folder in places else None
        if first := own if own in listed else targets.get(real):
            tree.again.append((parts, first))
        else:
            targets[real] = parts
            add(parts, path, os.path.isfile(path))

    while (
        folders or folder_links or file_links
    ):  # links last, so that a file is found in its own folder where that is listed
        if folders:
            parts, real = folders.pop()
            for entry in _entries(root, parts, real):
                below, path = (*parts, entry.name), os.path.join(real, entry.name)
                if entry.is_symlink():
                    (folder_links if os.path.isdir(path) else file_links).append((below, path))
                elif entry.is_dir():
                    enter(below, path)
                else:
                    add(below, path, entry.is_file())
        elif folder_links:
            parts, path = folder_links.popleft()
            enter(parts, os.path.realpath(path))
        else:
            add_link(*file_links.popleft())
    for found in tree:
        found.sort()
    return tree


def _inside(path: str, folder: str) -> bool:
    return f"{path}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def _entries(root: Path, parts: Parts, real: str) -> list[os.DirEntry]:
    """The entries of a folder in text order, without hidden ones."""
    try:
        with os.scandir(real) as entries:
            return sorted(
                (e for e in entries if not e.name.startswith(".") and e.name not in SKIPPED),
                key=lambda e: e.name,
            )
    except OSError as error:
        where = _said(parts) if parts else "itself"
        raise UserError(
            f"data.path={root}: the folder {where} cannot be read ({error.strerror}); "
            "allow it to be read, or move it away"
        ) from None


def natural(name: str) -> tuple:
    """A key that sorts names as people count: '2' before '10', 'img2' before 'img10'; other names
    as text.
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


# ---- deciding
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
        held = _counted(tree, (), "; it holds ", ", which are not read as images")
        raise UserError(f"data.path={root} holds no images{held}")
    train, test, unused = _splits(root, tree, images, layout)
    found, (train, test) = _count(train, test), _once(root, repeated, train, test)
    if again := found - _count(train, test):
        unused.append(f"{again} images that a link shows again")
    wrapper, dropped = _said(train.root), [*unused, *_without_images(tree, train)]
    if test:
        names = _class_names(root, train, test)
        rule = f"split by {_said(train.root)}/ and {_said(test.root)}/"
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


def held_out(files: list[File], what: str) -> tuple[list[File], list[File]]:
    """(train, test) of files that are not split: a tenth is held out by the hash of the path, so
    that adding files moves none.

    what: the data, for messages. UserError as in `hold_out`.
    """
    draws = [
        int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:8]) / 2**64
        for file in files
    ]
    order, wanted = (
        sorted(range(len(files)), key=draws.__getitem__),
        sum(draw < HELD_OUT for draw in draws),
    )
    splits = hold_out(order, wanted, [file.label for file in files], what, FLAT)
    return tuple([files[row] for row in rows] for rows in splits)


def hold_out(
    order: Sequence[int], wanted: int, labels: Sequence[Any], what: str, hint: str = ""
) -> tuple[list[int], list[int]]:
    """(rows to train on, rows to hold out): the first rows of an order, at least one, but never the
    last row of a label.

    Args:
      order: all rows, those first that are to be held out.
      wanted: how many of them.
      labels: of each row, equal where they are of one class.
      what, hint: for messages: the data, and how to use them without labels.

    Raises:
      UserError: for one row, or where every class has one row, so that none can be held out.
    """
    if len(order) < 2:
        raise UserError(
            f"{what} holds one image; at least two are needed, one to train on and one to test with"
        )
    left, held = collections.Counter(labels), set()
    for position, row in enumerate(order):
        if held and position >= wanted:
            break
        if left[labels[row]] > 1:
            held.add(row)
            left[labels[row]] -= 1
    if not held:
        raise UserError(
            f"{what}: each of the {len(left)} classes has one image, so none can be held out for testing; add images "
            f"or a test split, or use them without labels{hint}"
        )
    return [row for row in range(len(order)) if row not in held], sorted(held)


def _splits(
    root: Path, tree: Tree, images: list[Parts], layout: str
) -> tuple[_Split, _Split | None, list[str]]:
    """(train, test or None, what is not used)."""
    if layout == "flat":
        return _Split((), [(image, "") for image in images]), None, []
    if layout == "classes":
        return _labelled(root, images, (), strict=False), None, []
    prefix = _unwrapped(images, (), _is_split)
    stray, folders = _level(images, prefix)
    train = [name for name in folders if name.lower() in TRAIN]
    tests = [[name for name in folders if name.lower() in kind] for kind in TEST]
    others = [name for name in folders if not _is_split(name)]
    if not layout and not train and not any(tests):
        return _labelled(root, images, prefix, strict=True), None, []
    n = len(prefix)
    for folder in tree.folders:
        if (
            folder[:n] == prefix
            and len(folder) == n + 1
            and _is_split(folder[n])
            and folder[n] not in folders
        ):
            raise UserError(
                f"{root.joinpath(*folder)} holds no images; add some, or remove it to hold out a tenth of "
                "the others"
            )
    _check_splits(root, prefix, stray, folders, train, tests, others, layout)
    held = [name for names in tests for name in names]
    parts = [_labelled(root, folders[train[0]], (*prefix, train[0]), strict=not layout)]
    if held:
        known = {label for _, label in parts[0].images}
        parts.append(
            _labelled(root, folders[held[0]], (*prefix, held[0]), strict=not layout, known=known)
        )
    unused = [
        f"{_said((*prefix, name))}/ ({len(folders[name])} images)"
        for name in (*held[1:], *(others if layout else ()))
    ]
    unused += [f"{len(stray)} images beside {train[0]}/"] if stray else []
    return parts[0], parts[1] if held else None, unused


def _is_split(name: str) -> bool:
    return name.lower() in (*TRAIN, *TEST[0], *TEST[1])


def _check_splits(root, prefix, stray, folders, train, tests, others, layout) -> None:
    """Refuse a folder with folders called like splits that can be read otherwise, or, by
    layout=splits, not at all.
    """
    where = f"data.path={root.joinpath(*prefix)}"
    chosen = _as_classes(where, prefix)
    for names in (train, *tests):
        if len(names) > 1:
            raise UserError(
                f"{where} has {_and(names)}, which mean the same; keep one of them, or, if the folders are classes, "
                f"set {chosen}"
            )
    held = [name for names in tests for name in names]
    if not train:
        there = _and(held or list(folders) or ["images"])
        raise UserError(
            f"{where} has {there}, but no train/; name the folder of the training images train/, or, if the folders are "
            f"classes, set {chosen}"
        )
    if layout:
        return
    if stray:
        inside, beside, flat = (
            len(folders[train[0]]),
            len(stray),
            len(stray) + sum(map(len, folders.values())),
        )
        raise _two_readings(
            where,
            f"{train[0]}/ holds the {inside} training images, and the {beside} beside it are not used",
            f"all {flat} are used, without labels",
            "--config.data.layout=flat",
        )
    if others:
        unused = f"{_and(others)} {'is' if len(others) == 1 else 'are'} not used"
        raise _two_readings(
            where,
            f"{train[0]}/ holds the training images, and {unused}",
            f"{_and(list(folders))} are classes",
            chosen,
        )


def _two_readings(where: str, first: str, second: str, chosen: str) -> UserError:
    return UserError(
        f"{where} can be read in two ways: {first} (--config.data.layout=splits), or {second} ({chosen}); choose one"
    )


def _labelled(
    root: Path, images: list[Parts], prefix: Parts, *, strict: bool, known: Iterable[str] = ()
) -> _Split:
    """The images of a split with their labels. strict: refuse what can be read otherwise. known:
    labels of the training split.
    """
    if strict or prefix:
        prefix = _unwrapped(images, prefix, lambda name: name in known)
    where = f"data.path={root.joinpath(*prefix)}"
    stray, folders = _level(images, prefix)
    if stray and folders:
        raise UserError(
            f"{where} can be read in two ways, as it has images both in sub-folders and beside them "
            f"({_said(stray[0][-1:])}): sub-folders are classes, and then move the {len(stray)} beside them into one, or "
            "all images are used without labels (--config.data.layout=flat); choose one"
        )
    if strict and folders:
        _check_nesting(where, images, prefix, folders)
    return _Split(prefix, [(image, image[len(prefix)] if folders else "") for image in images])


def _check_nesting(
    where: str, images: list[Parts], prefix: Parts, folders: dict[str, list[Parts]]
) -> None:
    """Refuse folders that all hold folders of the same names: which of the two are the classes?"""
    n, outer, chosen = len(prefix), _and(list(folders)), _as_classes(where, prefix)
    alike = [name for name in folders if SPLIT_LIKE.fullmatch(name)]
    if any(name.lower().startswith(TRAIN) for name in alike):
        raise UserError(
            f"{where} can be read in two ways: {outer} are classes ({chosen}), or {_and(alike)} "
            f"{'are splits' if len(alike) > 1 else 'is a split'}, and then name the folders train/ and test/; choose one"
        )
    if (
        len(folders) > 1
        and all(map(_is_split, folders))
        and any(name.lower() in TRAIN for name in folders)
    ):
        raise UserError(
            f"{where} holds {outer}: name this folder as data.path, or, if they are classes, set {chosen}"
        )
    inner = [{image[n + 1] for image in below if len(image) > n + 2} for below in folders.values()]
    names = sorted(set.intersection(*inner), key=natural)
    if any(len(image) == n + 2 for image in images) or not (
        len(names) > 1 or any(map(_is_split, names))
    ):
        return
    raise UserError(
        f"{where} can be read in two ways: {outer} are classes ({chosen}), or {_and(names)}, which "
        "are in each of them, are classes or splits, and then put the folders of one name together; choose one"
    )


def _as_classes(where: str, prefix: Parts) -> str:
    """What to type so that the folders at this place are the classes, whatever their names. where:
    'data.path=PLACE'.
    """
    if any(map(_is_split, prefix)):
        return "--config.data.layout=splits"
    return (
        f"--config.{where} --config.data.layout=classes"
        if prefix
        else "--config.data.layout=classes"
    )


def _unwrapped(images: list[Parts], prefix: Parts, keeps: Callable[[str], bool]) -> Parts:
    """The folder that holds the classes: while all images are in one folder, and none directly, it
    is that one.
    """
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
    """(images that are directly in a folder, sub-folder -> those below it, in natural order)."""
    n, stray, folders = len(prefix), [], {}
    for image in images:
        (stray if len(image) == n + 1 else folders.setdefault(image[n], [])).append(image)
    return stray, {name: folders[name] for name in sorted(folders, key=natural)}


def _class_names(root: Path, train: _Split, test: _Split) -> tuple[str, ...]:
    known, found = ({label for _, label in split.images} - {""} for split in (train, test))
    where = f"data.path={root}"
    if strange := sorted(found - known, key=natural):
        near = [name for name in known if name.lower() == strange[0].lower()]
        hint = f" (there is {_said(near)})" if near else ""
        raise UserError(
            f"{where}: the test images have a label '{_said(strange[:1])}' that no train image has{hint}; "
            f"give both splits the same folders, or use all images without labels{FLAT}"
        )
    if known and any(not label for _, label in test.images):
        raise UserError(
            f"{where}: the train images are in sub-folders (labels), the test images are not; "
            f"put the test images into the same folders, or use all images without labels{FLAT}"
        )
    return tuple(sorted(known, key=natural))


def _files(root: Path, split: _Split) -> list[File]:
    n = len(split.root)
    return [
        File(root.joinpath(*image), "/".join(image[n:]), label) for image, label in split.images
    ]


# ---- links, and what is left out
def _repeated(root: Path, tree: Tree) -> dict[Parts, Parts]:
    """Every image that is reached once more through a link -> where it was found first."""
    repeated = {}
    for parts, first in tree.again:
        for image in itertools.islice(tree.images, bisect.bisect_left(tree.images, first), None):
            if image[: len(first)] != first:
                break
            repeated[(*parts, *image[len(first) :])] = image
        if len(repeated) > MOST_REPEATED:
            raise UserError(
                f"data.path={root} has links by which {MOST_REPEATED:,} images are found again; remove "
                "them"
            )
    return repeated


def _count(*splits: _Split | None) -> int:
    return sum(len(split.images) for split in splits if split)


def _once(
    root: Path, repeated: dict[Parts, Parts], train: _Split, test: _Split | None
) -> tuple[_Split, _Split | None]:
    """The splits without the second finds of an image. UserError for one file in two classes, or in
    both splits.
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
                else f"the classes {_and([owner[1], label])}"
            )
            raise UserError(
                f"data.path={root}: {_said(owner[0])} and {_said(image)} are one file, by a link, in "
                f"{what}; remove one of them, or use all images once and without labels by --config.data.layout=flat"
            )
        second.add(image)
    train, test = (
        split and split._replace(images=[x for x in split.images if x[0] not in second])
        for split in (train, test)
    )
    return train, test


def _without_images(tree: Tree, train: _Split) -> list[str]:
    """The folders beside those of the classes that have no image and so are no class, and what they
    hold.
    """
    n = len(train.root)
    used = {image[n] for image, _ in train.images if len(image) > n + 1}
    beside = [
        f for f in tree.folders if len(f) == n + 1 and f[:n] == train.root and f[n] not in used
    ]
    beside.sort(key=lambda folder: natural(folder[n]))
    return [
        f"{_said(folder)}/, which has no images{_counted(tree, folder, ' (', ')')}"
        for folder in beside
    ]


def ignored(tree: Tree, expected: Callable[[str], bool] = lambda name: False) -> str:
    """'60 .xyz, 1 without an ending': the files that are no images, counted by ending; '' if there
    are none.

    Args:
      expected: whether a file of this name is not to be counted, such as that of a caption.
    """
    return _counted(
        tree._replace(
            ignored=[(parts, why) for parts, why in tree.ignored if not expected(parts[-1])]
        ),
        (),
    )


def _counted(tree: Tree, folder: Parts, before: str = "", after: str = "") -> str:
    counts = collections.Counter(
        why for parts, why in tree.ignored if parts[: len(folder)] == folder
    )
    if not counts:
        return ""
    listed = [
        f"{count} {why}{_where(tree, folder) if why == BROKEN else ''}"
        for why, count in counts.most_common(8)
    ]
    rest = sum(count for _, count in counts.most_common()[8:])
    return f"{before}{', '.join(listed)}{f' and {rest} others' if rest else ''}{after}"


def _where(tree: Tree, folder: Parts) -> str:
    return f" ({_and(['/'.join(parts) for parts, why in tree.ignored if why == BROKEN and parts[: len(folder)] == folder])})"


def _said(parts: Sequence[str]) -> str:
    return printable("/".join(parts))


def _and(names: Sequence[str]) -> str:
    """'a, b and c', of many the first ones."""
    names = [printable(name) for name in names]
    names = names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
