"""Files that may be damaged, edited by hand or written by a stranger: read within bounds, checked.

    json_file(path, rule)   a JSON file in which each value has the type and range of a rule
    kept(path, read)        a part that an interrupted run left, or None where it is damaged

A rule is a function of a value and its place in the file that raises `Mismatch`. There is one for
each kind of file, next to the function that writes it:

    rule = record({"rows": items(record({"nfe": integer(1)})), "about": anything})
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core.errors import UserError

LARGEST = 2**28  # bytes of a JSON file: the largest that the project writes have some MB
DEPTH = 64  # objects and lists inside others
LONGEST = 100_000  # characters of a text

Rule = Callable[[Any, str], None]  # (value, its place in the file)


class Mismatch(Exception):
    """A value that does not meet its rule; the reason, with its place."""


# ---- rules
def _expects(accepts: Callable[[Any], bool], allowed: str) -> Rule:
    def rule(value: Any, place: str) -> None:
        if not accepts(value):
            raise Mismatch(f"{place or 'its content'} is {_shown(value)}, and must be {allowed}")

    return rule


def anything(value: Any, place: str) -> None:
    """Allow every value. This is a rule itself, where the functions below return rules.

    Args:
      value: a value of a JSON file; it is not looked at.
      place: its place in the file; it is not used either.
    """


def number(low: float = -math.inf, high: float = math.inf, *, finite: bool = True) -> Rule:
    """Allow a number in [low, high].

    Args:
      low: smallest number allowed.
      high: largest number allowed.
      finite: whether NaN and numbers of 1e300 or more are refused; without it NaN is allowed, and
        so are infinities within the bounds.
    """

    def accepts(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        if type(value) is int and abs(value) > 2**1000:  # too large for a float
            return False
        return (
            low <= value <= high and abs(value) < 1e300
            if finite
            else math.isnan(value) or low <= value <= high
        )

    span = (
        f" from {low:g} to {high:g}"
        if math.isfinite(low) and math.isfinite(high)
        else f" of at least {low:g}" * math.isfinite(low)
    )
    return _expects(accepts, f"a {'finite ' * finite}number{span}")


def integer(low: int = 0, high: int = 2**62) -> Rule:
    """Allow a whole number in [low, high]; booleans are refused.

    Args:
      low: smallest number allowed.
      high: largest number allowed.
    """
    return _expects(
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number from {low} to {high}",
    )


def text(least: int = 0, most: int = LONGEST) -> Rule:
    """Allow a string of a bounded length.

    Args:
      least: smallest number of characters allowed.
      most: largest number of characters allowed.
    """
    return _expects(
        lambda value: isinstance(value, str) and least <= len(value) <= most,
        f"a text of {least} to {most} characters",
    )


def boolean() -> Rule:
    """Allow true or false."""
    return _expects(lambda value: isinstance(value, bool), "true or false")


def one_of(*choices: Any) -> Rule:
    """Allow given values only.

    Args:
      *choices: the values. A value of another type is refused even if Python calls it equal, such
        as true for 1.
    """
    return _expects(
        lambda value: any(type(value) is type(c) and value == c for c in choices),
        f"one of {', '.join(map(str, choices))}",
    )


def either(*rules: Rule) -> Rule:
    """Allow what one of the rules allows; the message for a mismatch is that of the last.

    Args:
      *rules: the rules, tried in this order.
    """

    def rule(value: Any, place: str) -> None:
        for each in rules[:-1]:
            try:
                return each(value, place)
            except Mismatch:
                continue
        return rules[-1](value, place)

    return rule


def optional(rule: Rule) -> Rule:
    """Allow null, or what the rule allows.

    Args:
      rule: the rule of every value but null.
    """
    return lambda value, place: None if value is None else rule(value, place)


def items(rule: Rule = anything, least: int = 0, most: int = 10**7) -> Rule:
    """Allow a list of a bounded length whose values each meet a rule.

    Args:
      rule: the rule of each value.
      least: smallest number of values allowed.
      most: largest number of values allowed.
    """
    is_list = _expects(
        lambda value: isinstance(value, list) and least <= len(value) <= most,
        f"a list of {least} to {most} values",
    )

    def every(value: Any, place: str) -> None:
        is_list(value, place)
        for i, item in enumerate(value):
            rule(item, f"{place}[{i}]")

    return every


def nested(rule: Rule) -> Rule:
    """Allow what the rule allows, or lists of it, of lists of it, and so on: an array in JSON.

    Args:
      rule: the rule of the innermost values.
    """

    def every(value: Any, place: str) -> None:
        for i, item in enumerate(value) if isinstance(value, list) else ():
            every(item, f"{place}[{i}]")
        if not isinstance(value, list):
            rule(value, place)

    return every


def table(rule: Rule = anything) -> Rule:
    """Allow an object with any keys whose values each meet a rule.

    Args:
      rule: the rule of each value.
    """
    is_object = _expects(lambda value: isinstance(value, dict), "an object")

    def every(value: Any, place: str) -> None:
        is_object(value, place)
        for key, item in value.items():
            rule(item, _within(place, key))

    return every


def record(
    needed: Mapping[str, Rule], also: Mapping[str, Rule] | None = None, others: Rule = anything
) -> Rule:
    """Allow an object with given keys.

    Args:
      needed: the keys that must be there, and their rules.
      also: the keys that may be missing, and their rules.
      others: the rule of all other keys.
    """
    rules, is_object = {**needed, **(also or {})}, table()

    def every(value: Any, place: str) -> None:
        is_object(value, place)
        if missing := [key for key in needed if key not in value]:
            raise Mismatch(f"{f'{place} lacks' if place else 'it lacks'} {', '.join(missing)}")
        for key, item in value.items():
            rules.get(key, others)(item, _within(place, key))

    return every


# what a cell of a table of results may hold
scalar = either(boolean(), optional(text()), number(finite=False))


def check(value: Any, rule: Rule, what: str) -> None:
    """Check a value by a rule.

    Args:
      value: parsed JSON: None, booleans, numbers, strings, lists and dicts.
      rule: what it must be.
      what: where the value comes from, which begins the message, such as "'config.json'".

    Raises:
      UserError: that `what` is damaged, and how.
    """
    try:
        _shallow(value)
        rule(value, "")
    except Mismatch as mismatch:
        raise UserError(f"{what} is damaged: {mismatch}") from None


def _within(place: str, key: str) -> str:
    return f"{place}.{key:.60}" if place else f"{key:.60}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return (
        f"a list of {len(value)} values" if isinstance(value, list) else f"{json.dumps(value):.60}"
    )


def _shallow(value: Any) -> None:
    """Raise Mismatch for a value nested deeper than DEPTH, too deep for recursive functions."""
    level = [value]
    for _ in range(DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, (list, dict))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise Mismatch(f"it is nested more than {DEPTH} deep")


# ---- files
def content(path: str | os.PathLike, largest: int = LARGEST) -> bytes:
    """Read a regular file of bounded size, without waiting for a pipe or a device.

    Args:
      path: the file; anything but a regular file is refused.
      largest: largest size that is read, in bytes.

    Raises:
      UserError: where it is missing, not a regular file, too large, or cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UserError(f"'{path}' is not a regular file")
            if about.st_size > largest:
                raise UserError(
                    f"'{path}' has {about.st_size:,} bytes, and at most {largest:,} are read"
                )
            return file.read(about.st_size)
    except (OSError, ValueError) as error:  # (ValueError: a name with a zero byte)
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read '{path}': {getattr(error, 'strerror', None) or error}"
        ) from error


def json_file(path: str | os.PathLike, rule: Rule = anything) -> Any:
    """Read a JSON file whose value meets a rule.

    Args:
      path: the file, of at most 256 MiB, in UTF-8.
      rule: what its value must be.

    Raises:
      UserError: one line with the file, the place in it and what is wrong.
    """
    return json_text(content(path), f"'{path}'", rule)


def json_text(text: str | bytes, what: str, rule: Rule = anything) -> Any:
    """Read JSON text whose value meets a rule.

    Args:
      text: the text; bytes are UTF-8.
      what: where the text comes from, which begins the message.
      rule: what its value must be.

    Raises:
      UserError: that `what` is damaged, and how.
    """
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=once
        )
    except RecursionError:
        raise UserError(f"{what} is damaged: it is nested more than {DEPTH} deep") from None
    # broken JSON, bytes that are not UTF-8, a number of thousands of digits
    except ValueError as error:
        raise UserError(f"{what} is not valid JSON ({error})") from None
    check(value, rule, what)
    return value


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, such as one of JSON (object_pairs_hook), of which no key may occur twice.

    Args:
      pairs: the keys and values of one object, in the order of the file.

    Raises:
      ValueError: for a key that does, as it is ambiguous.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{key:.60}' is given twice")
        found[key] = value
    return found


def kept(path: str | os.PathLike, read: Callable[[Any], Any]) -> Any:
    """Read what an earlier run of the same command left at `path`.

    This is how resumable commands read their files: where `read(path)` raises UserError, because
    the part is damaged or was edited, a warning says so and the part is computed again.

    Args:
      path: the file, which need not exist.
      read: a function of the path that returns its content, or raises UserError where it is
        damaged.

    Returns:
      What `read` returns, or None where there is nothing or it is damaged.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read(Path(path))
    except UserError as error:
        print(f"warning: {error}; this part is made again", file=sys.stderr)
        return None
