"""Errors that name what a user did wrong, in one line with the key, the value and the remedy."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

UNFINISHED = 75  # exit status of a command that was stopped before it was done: run it again
MANY = 150  # names that one line still lists all of
LONGEST = 200  # characters of an unknown name that are shown and compared


class UserError(ValueError):
    """A mistake of the user; commands print its one line and exit with status 2.

    The message is one printable line, whatever is in the names and values that it quotes.

    Args:
      message: what is wrong, what is allowed and what to type; line breaks become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", message)))


class CommandExit(Exception):
    """Ends a command with an exit status, after it has printed its results.

    Args:
      status: 75 (UNFINISHED) where running the same command again resumes it; 1 for a negative
        result.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


def printable(text: str) -> str:
    r"""Escape the characters of a text that control a terminal, such as \x1b.

    These are the control and format characters of Unicode (categories Cc, Cf), among them those
    that change the direction of writing, its separators of lines and paragraphs, and the halves of
    surrogate pairs by which Python represents names of files that are not UTF-8. Joiners, which
    emoji consist of, stay.

    Args:
      text: any text, such as the name of a file or a value of a flag.

    Returns:
      The text, in which each such character is written as its escape sequence.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _CONTROL and c not in _JOINERS
        else c
        for c in text
    )


_CONTROL, _JOINERS = {"Cc", "Cf", "Cs", "Zl", "Zp"}, "\u200c\u200d"


def unknown(what: str, name: str, choices: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist, with the nearest and all names that do.

    unknown('model', 'mpl', ['mlp', 'unet']) -> "unknown model 'mpl'; did you mean 'mlp'? There are:
    mlp, unet"

    Args:
      what: the kind of name, such as 'model'.
      name: the name that was given, of which at most 200 characters are shown.
      choices: the names that exist; of more than 150 the message lists the ten nearest.

    Returns:
      The error, for the caller to raise.
    """
    # the time of a comparison is quadratic in the length
    name = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    choices = sorted(choices)  # of very many only the nearest are listed
    near = nearest(name, choices)
    hint = f"; did you mean '{near}'?" if near else "."
    listed = (
        choices
        if len(choices) <= MANY
        else difflib.get_close_matches(name, choices, n=10, cutoff=0.0)
    )
    return UserError(
        f"unknown {what} '{name}'{hint} There are: {', '.join(listed)}"
        + ", ..." * (len(choices) > MANY)
    )


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the choice that is most like a name, '' if none is.

    A dotted choice also counts by its last part: ddimm is like ancestral.ddim.

    Args:
      name: the name that was given; upper and lower case count as equal.
      choices: the names that exist.
      cutoff: smallest likeness of an answer, from 0 (any) to 1 (equal), by difflib's ratio.
    """

    def likeness(choice: str) -> float:
        parts = {choice, choice.rpartition(".")[2]} if "." not in name else {choice}
        return max(
            difflib.SequenceMatcher(None, name.lower(), part.lower()).ratio() for part in parts
        )

    best = max(choices, key=lambda choice: (likeness(choice), choice), default="")
    return best if best and likeness(best) >= cutoff else ""


def need_range(
    what: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> None:
    """Refuse a number outside [low, high], or (low, high] if `above`, and every nan and infinity.

    Args:
      what: the function and its argument, such as 'ancestral.ddim: eta'.
      value: the number; what is not a Python number (a traced array, a function of time) passes.
      low: the lower bound.
      high: the upper bound.
      above: whether the lower bound itself is refused.

    Raises:
      UserError: one line with the name, the value and the range.
    """
    if not isinstance(value, (int, float)):
        return
    if math.isfinite(value) and (low < value if above else low <= value) and value <= high:
        return
    start = f"above {low:g}" if above else f"at least {low:g}" if low > -math.inf else "finite"
    end = f" and at most {high:g}" if high < math.inf else ""
    raise UserError(f"{what}={value}: it must be {start}{end}")


def need_ranges(what: str, **bounds: tuple[Any, float, float]) -> None:
    """Check several arguments of a function by `need_range`.

    need_ranges('times.lognormal', mean=(mean, -20, 20), std=(std, 1e-6, 20))

    Args:
      what: the function, such as 'times.lognormal'.
      **bounds: (value, low, high) of each argument.

    Raises:
      UserError: one line with the first argument that is out of its range.
    """
    for name, (value, low, high) in bounds.items():
        need_range(f"{what}: {name}", value, low, high)


def need_increasing(what: str, **values: Any) -> None:
    """Refuse numbers that do not rise from the first to the last.

    Args:
      what: the function, such as 'schedules.VE'.
      **values: its arguments in the order in which they must rise; what is not a Python number
        passes.

    Raises:
      UserError: one line with the names and the values.
    """
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    if any(not low < high for low, high in zip(numbers.values(), list(numbers.values())[1:])):
        said = ", ".join(f"{name}={value}" for name, value in numbers.items())
        raise UserError(f"{what}({said}): it must be {' < '.join(numbers)}")
