"""Values of flags: numbers, ranges, names, labels, paths and seeds."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.core.errors import UserError, unknown

MAX_SEEDS = 10_000_000


def parse_seeds(text: str) -> list[int]:
    """Parse seeds: '0-63,100' -> [0, ..., 63, 100].

    Args:
      text: numbers and ranges with commas between them; a range includes both its ends.

    Returns:
      The seeds in the order given.

    Raises:
      UserError: for anything but distinct whole numbers below 2^32, and for more than 10 million.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(
                f"seeds '{text}': '{part.strip()}' is neither a number nor a range; write for "
                "example 0-63,100"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**32:
            raise UserError(
                f"seeds '{text}': '{part.strip()}' must go up and stay below 2^32; write for "
                "example 0-63"
            )
        if len(seeds) + last - first >= MAX_SEEDS:
            raise UserError(
                f"seeds '{text}' are more than {MAX_SEEDS:,} images; request fewer at a time"
            )
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds '{text}' name an image twice; list each seed once")
    return seeds


ENDINGS = {
    ".npy",
    ".npz",
    ".h5",
    ".hdf5",
    ".pt",
    ".pth",
    ".ckpt",
    ".safetensors",
    ".pkl",
    ".webp",
    ".yaml",
    ".md",
}

METRICS = {
    "fd": "frechet",
    "is": "inception_score",
    "precision": "prdc",
    "recall": "prdc",
    "density": "prdc",
    "coverage": "prdc",
    "memorisation": "memorization",
}


def expand_home(flag: str, text: str) -> str:
    """Expand ~ in a path.

    Args:
      flag: name of the flag with its dashes, for the message.
      text: a path; only ~ and ~USER at its start are expanded.

    Raises:
      UserError: for a user who does not exist.
    """
    path = os.path.expanduser(text)
    if path.startswith("~") and not path.startswith("~/"):
        raise UserError(
            f"{flag}={text}: there is no user {path.partition('/')[0]}; a file of that name is "
            f"./{path}"
        )
    return path


def paths(flag: str, text: str) -> list[str]:
    """Parse the paths of --flag=A,B.

    Args:
      flag: name of the flag without dashes, for the message.
      text: paths with commas between them; a leading ~ is expanded, and empty parts are left out.

    Raises:
      UserError: for the home folder of a user who does not exist.
    """
    return [expand_home(f"--{flag}", part.strip()) for part in text.split(",") if part.strip()]


def names(text: str) -> list[str]:
    """Parse a list of names: 'pixels, classifier' -> ['pixels', 'classifier']; '' -> [].

    Args:
      text: names with commas between them; spaces around a name and empty parts are left out.
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def specs(text: str) -> list[str]:
    """Parse a list of specs: 'ode.heun@karras; sde.sa(order=3, tau=1)' has two.

    Args:
      text: specs with semicolons between them, or with commas, of which those within brackets and
        quotes belong to a spec; spaces around a spec and empty parts are left out.
    """
    found, depth, quote = [""], 0, ""
    for c in text:
        if quote or c in "\"'":
            quote = "" if c == quote else quote or c
        depth += (c in "([{") - (c in ")]}") if not quote else 0
        if not quote and (c == ";" or c == "," and depth <= 0):
            found, depth = [*found, ""], 0
        else:
            found[-1] += c
    return [part.strip() for part in found if part.strip()]


def metrics(text: str) -> list[str]:
    """Parse the names of metrics; names of other programs, such as fd, become those of this one.

    Names that also choose features, such as fid, are left to choice.resolve_names.

    Args:
      text: names with commas between them, as for `names`.

    Returns:
      The names, each once, in the order given. Whether they exist is not checked here.
    """
    return list(dict.fromkeys(METRICS.get(name.lower(), name) for name in names(text)))


def integers(flag: str, text: str, low: int = 0, high: int = 10**9) -> list[int]:
    """Parse whole numbers: '0,1,2' -> [0, 1, 2]; '' -> [].

    Args:
      flag: name of the flag without dashes, for the message.
      text: whole numbers with commas between them, or nothing.
      low: smallest number allowed.
      high: largest number allowed.

    Raises:
      UserError: naming the flag, for anything else and for numbers outside [low, high].
    """
    try:
        found = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(
            f"--{flag}={text:.60}: write whole numbers with commas, such as 0,1,2"
        ) from None
    if bad := [value for value in found if not low <= value <= high]:
        raise UserError(f"--{flag}={text:.60}: {str(bad[0]):.30} is not from {low} to {high}")
    return found


def labels(flag: str, text: str, names: Sequence[str]) -> list[int]:
    """Parse labels: '0,cat,any' -> [0, 1, 2]; '' -> [].

    A name may be written in any case, and may itself have commas.

    Args:
      flag: name of the flag without dashes, for the message.
      text: numbers and names of classes with commas between them, or nothing.
      names: the names of the classes by number; 'any' is one number more.

    Raises:
      UserError: for what is not a class, and for a number that is also the name of another class,
        which 'label:1' and 'name:1' distinguish.
    """
    parts, found = [part.strip() for part in text.split(",")] if text.strip() else [], []
    longest = 1 + max((name.count(",") for name in names), default=0)  # parts of a name
    while parts:
        for length in range(min(longest, len(parts)), 0, -1):  # the longest name first
            number = _label(flag, ", ".join(parts[:length]), names, last=length == 1)
            if number is not None:
                found.append(number)
                del parts[:length]
                break
    return found


def _label(flag: str, text: str, names: Sequence[str], last: bool) -> int | None:
    """Return the number of one class; any other text is refused if `last`, else None."""
    kind, _, rest = text.partition(":")

    def plain(name: str) -> str:
        return re.sub(r",\s*", ", ", name.strip()).lower()

    wanted = rest if kind in ("name", "label") else text
    exact = [i for i, name in enumerate(names) if name == wanted]
    by_name = (
        (exact or [i for i, name in enumerate(names) if plain(name) == plain(wanted)])
        if kind != "label"
        else []
    )
    by_number = (
        [int(wanted)]
        if wanted.isdecimal() and wanted.isascii() and len(wanted) < 10 and kind != "name"
        else []
    )
    if by_name and by_number and by_number[0] < len(names) and by_name != by_number:
        number = by_number[0]
        raise UserError(
            f"--{flag}={text} is the number of the class '{names[number]}' and the name of class "
            f"{by_name[0]}; write label:{text} or name:{text}"
        )
    if by_name or by_number:
        return (by_name or by_number)[0]
    if plain(wanted) == "any" and kind != "label":
        return len(names)
    if last:
        raise (
            unknown(f"--{flag}", text, [*names, "any"])
            if names
            else UserError(f"--{flag}={text}: write whole numbers with commas, such as 0,1,2")
        )
    return None


def numbers(flag: str, text: str, low: float, high: float) -> list[float]:
    """Parse numbers: '0,0.5,1' -> [0.0, 0.5, 1.0].

    Args:
      flag: name of the flag without dashes, for the message.
      text: numbers with commas between them.
      low: smallest number allowed.
      high: largest number allowed.

    Raises:
      UserError: naming the flag, for anything else, for no number, and for numbers outside [low,
        high].
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--{flag}={text:.60}: write numbers with commas, such as 0.5,1,2"
        ) from None
    if bad := [value for value in found if not low <= value <= high]:
        raise UserError(f"--{flag}={text:.60}: {bad[0]:g} is not from {low:g} to {high:g}")
    return found


def output(flag: str, text: str, *endings: str, default: str | Path = "") -> dict[str, Path]:
    """Return the files that a command writes for --flag=NAME, with or without one of the endings.

    A dot in NAME stays: cfg1.5 -> cfg1.5.npz.

    Args:
      flag: name of the flag without dashes, for the message.
      text: a path with or without one of the endings; '' is `default`, a name without an ending.
      *endings: the endings of what the command writes, such as '.npz' and '.png'.
      default: the name where the flag is not given.

    Returns:
      {ending: path}.

    Raises:
      UserError: for a folder, and for the ending of another format.
    """
    if not text:
        return {ending: Path(f"{default}{ending}") for ending in endings}
    path = Path(text)
    wanted = ", ".join(f"NAME{ending}" for ending in endings)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"--{flag}={text} is a device or a pipe; name a file (writes {wanted})")
    if text.endswith("/") or os.path.isdir(path):
        raise UserError(
            f"--{flag}={text} is a folder; name a file in it, such as {path / 'result'} (writes "
            f"{wanted})"
        )
    if path.suffix.lower() in endings:
        path = path.with_name(path.name[: -len(path.suffix)])
    elif path.suffix.lower() in ENDINGS or path.suffix.lower() in mimetypes.types_map:
        raise UserError(
            f"--{flag}={text}: this command writes {wanted}; give the name without '{path.suffix}'"
        )
    return {ending: path.with_name(path.name + ending) for ending in endings}


def folder(flag: str, text: str | Path) -> Path:
    """Return the folder to write to, given as --flag=FOLDER.

    Args:
      flag: name of the flag without dashes, for the message.
      text: the path; it need not exist, and is not made here.

    Raises:
      UserError: if the path is a file.
    """
    path = Path(text)
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"--{flag}={text} is a file; name a folder to write to")
    return path
