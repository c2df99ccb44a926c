"""The files and folders below a folder: links are followed, and each file is visited once."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.core.errors import UserError, printable

# folders that operating systems leave behind; hidden folders are skipped as well
SKIPPED = ("__MACOSX", "lost+found", "@eaDir")
BROKEN = "broken link"
Parts = tuple[str, ...]  # a path relative to data.path


class Tree(NamedTuple):
    """The files that `walk` finds below a folder, by relative paths in text order.

    Attributes:
      images: the image files.
      folders: the folders.
      ignored: the files that are not images, each with the reason: its ending, 'without an ending',
        'broken link', 'special file'.
      again: the links to what is listed already, each with the place where that is.
    """

    images: list[Parts]
    folders: list[Parts]
    ignored: list[tuple[Parts, str]]
    again: list[tuple[Parts, Parts]]


def walk(root: Path, endings: Container[str], is_image: Callable[[str], bool]) -> Tree:
    """List all that is below a folder; links are followed, each folder and file is visited once.

    Args:
      root: the folder.
      endings: the endings of images, in lower case ('.png').
      is_image: whether a file without an ending is an image, by its content.

    Raises:
      UserError: for a folder that cannot be read.
    """
    found = _Walk(root, endings, is_image).run()
    for paths in found:
        paths.sort()
    return found


class _Walk:
    """One pass over a folder.

    Links are followed last, so that a file is found in its own folder where that is listed.
    """

    def __init__(
        self, root: Path, endings: Container[str], is_image: Callable[[str], bool]
    ) -> None:
        self.root, self.endings, self.is_image = root, endings, is_image
        self.tree = Tree([], [], [], [])
        self.real_root = os.path.realpath(root)
        self.places: dict[str, Parts] = {self.real_root: ()}  # real path of a folder -> its place
        self.targets: dict[str, Parts] = {}  # real path of a file behind a link -> its place
        self.listed: set[Parts] = set()  # the places of all images
        self.folders: list[tuple[Parts, str]] = [((), self.real_root)]
        self.folder_links: collections.deque[tuple[Parts, str]] = collections.deque()
        self.file_links: collections.deque[tuple[Parts, str]] = collections.deque()

    def run(self) -> Tree:
        while self.folders or self.folder_links or self.file_links:
            if self.folders:
                self._list(*self.folders.pop())
            elif self.folder_links:
                parts, path = self.folder_links.popleft()
                self._enter(parts, os.path.realpath(path))
            else:
                self._add_link(*self.file_links.popleft())
        return self.tree

    def _list(self, parts: Parts, real: str) -> None:
        for entry in _entries(self.root, parts, real):
            below, path = (*parts, entry.name), os.path.join(real, entry.name)
            if entry.is_symlink():
                links = self.folder_links if os.path.isdir(path) else self.file_links
                links.append((below, path))
            elif entry.is_dir():
                self._enter(below, path)
            else:
                self._add(below, path, entry.is_file())

    def _enter(self, parts: Parts, real: str) -> None:
        first = self.places.get(real)
        if _inside(self.real_root, real) or (first is not None and parts[: len(first)] == first):
            self.tree.ignored.append((parts, "link to a folder above"))
        elif first is None:
            self.places[real] = parts
            self.tree.folders.append(parts)
            self.folders.append((parts, real))
        else:
            self.tree.again.append((parts, first))

    def _add(self, parts: Parts, path: str, is_file: bool) -> None:
        ending = os.path.splitext(parts[-1])[1].lower()
        if not is_file:
            self.tree.ignored.append((parts, "special file" if os.path.exists(path) else BROKEN))
        elif ending in self.endings or (not ending and self.is_image(path)):
            self.tree.images.append(parts)
            self.listed.add(parts)
        else:
            self.tree.ignored.append((parts, ending or "without an ending"))

    def _add_link(self, parts: Parts, path: str) -> None:
        real = os.path.realpath(path)
        folder, name = os.path.split(real)
        own = (*self.places[folder], name) if folder in self.places else None
        if first := own if own in self.listed else self.targets.get(real):
            self.tree.again.append((parts, first))
        else:
            self.targets[real] = parts
            self._add(parts, path, os.path.isfile(path))


def _inside(path: str, folder: str) -> bool:
    return f"{path}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def _entries(root: Path, parts: Parts, real: str) -> list[os.DirEntry]:
    """Return the entries of a folder in text order, without hidden ones."""
    try:
        with os.scandir(real) as entries:
            return sorted(
                (e for e in entries if not e.name.startswith(".") and e.name not in SKIPPED),
                key=lambda e: e.name,
            )
    except OSError as error:
        where = shown_path(parts) if parts else "itself"
        raise UserError(
            f"data.path={root}: the folder {where} cannot be read ({error.strerror}); "
            "allow it to be read, or move it away"
        ) from None


def natural(name: str) -> tuple:
    """Return a key that sorts numbers in names by value: 'img2' before 'img10'.

    Args:
      name: the name of a file or a folder.
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def ignored(tree: Tree, expected: Callable[[str], bool] = lambda name: False) -> str:
    """Describe the files that are not images by ending, such as '60 .xyz, 1 without an ending'.

    Args:
      tree: what `walk` found.
      expected: whether a file of this name is not to be counted, such as that of a caption.

    Returns:
      The description, '' if there are no such files.
    """
    unexpected = [(parts, why) for parts, why in tree.ignored if not expected(parts[-1])]
    return counted(tree._replace(ignored=unexpected), ())


def counted(tree: Tree, folder: Parts, before: str = "", after: str = "") -> str:
    """Describe the ignored files below a folder, such as '3 .txt, 1 special file'.

    Args:
      tree: what is in the whole folder of images.
      folder: the relative path of the folder; () for all of it.
      before: text in front of the description.
      after: text behind it.

    Returns:
      '' if no file is ignored.
    """
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
    """Name the broken links below a folder."""
    broken = [
        "/".join(parts)
        for parts, why in tree.ignored
        if why == BROKEN and parts[: len(folder)] == folder
    ]
    return f" ({listed(broken)})"


def shown_path(parts: Sequence[str]) -> str:
    """Return a relative path as text that is safe to print.

    Args:
      parts: the names of the folders and of the file.
    """
    return printable("/".join(parts))


def listed(names: Sequence[str]) -> str:
    """Join names to 'a, b and c'; of more than six names the first five.

    Args:
      names: one name or more; control characters are escaped.
    """
    names = [printable(name) for name in names]
    names = names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
