"""Rules for config values: what is allowed, in words and as a test, and how text is read."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

DEPTH = 8  # sections inside sections
LONGEST = 100_000  # characters of a text; a table of betas has 50,000


class Rule(NamedTuple):
    """The values that a config key allows.

    Attributes:
      allows: the allowed values, as the end of the sentence 'it must be ...'.
      accepts: whether a value is allowed.
      read: the value of a text on the command line; raises ValueError for text of another type.
      choices: all values, of a rule that lists them, so that messages can name the nearest.
      is_path: whether it is the name of a file or a folder.
    """

    allows: str
    accepts: Callable[[Any], bool]
    read: Callable[[str], Any]
    choices: tuple[str, ...] = ()
    is_path: bool = False


def integer(low: int, high: int) -> Rule:
    """Allow a whole number in [low, high]; on the command line also as 1e3.

    Args:
      low: the smallest value that is allowed.
      high: the largest one.
    """

    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            value = float(text)
            if not value.is_integer():
                raise
            return int(value)

    return Rule(
        f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high, read
    )


def number(low: float, high: float, *, above: bool = False) -> Rule:
    """Allow a finite number in [low, high].

    Args:
      low: the smallest value that is allowed.
      high: the largest one.
      above: whether `low` itself is not allowed.
    """

    def accepts(value: Any) -> bool:
        # (an int may be too large for a float)
        return (
            type(value) in (int, float)
            and (low < value if above else low <= value)
            and value <= high
        )

    start = f"above {low:g} and at most" if above else f"from {low:g} to"
    end = f"{high:g}" if float(f"{high:g}") == high else repr(high)
    return Rule(f"a number {start} {end}", accepts, float)


def flag() -> Rule:
    """True or False."""
    words = {
        "true": True,
        "t": True,
        "1": True,
        "yes": True,
        "false": False,
        "f": False,
        "0": False,
        "no": False,
    }

    def read(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]

    return Rule("True or False", lambda v: type(v) is bool, read)


def text(*, empty: bool = True) -> Rule:
    """Allow a string of at most LONGEST characters, without control characters.

    Args:
      empty: whether '' and strings of spaces are allowed.
    """

    def accepts(value: Any) -> bool:
        return (
            type(value) is str
            and (empty or bool(value.strip()))
            and len(value) <= LONGEST
            and not _CONTROL.search(value)
        )

    return Rule("a text" if empty else "a text that is not empty", accepts, str)


def path() -> Rule:
    """The name of a file or a folder, or '' for none."""
    return text()._replace(allows="the name of a file or a folder", is_path=True)


def choice(*choices: str) -> Rule:
    """Allow some strings.

    Args:
      *choices: the strings, which a message lists; '' may be one of them.
    """
    listed = ", ".join(repr(name) for name in choices)
    return Rule(f"one of {listed}", lambda v: type(v) is str and v in choices, str, choices)


def optional(rule: Rule) -> Rule:
    """Allow None, and the values that a rule allows.

    Args:
      rule: the rule of the other values. On the command line None is written as None, none or null.
    """
    return rule._replace(
        allows=f"None or {rule.allows}",
        accepts=lambda v: v is None or rule.accepts(v),
        read=lambda text: None if text in ("None", "none", "null") else rule.read(text),
    )


def either(first: Rule, second: Rule) -> Rule:
    """Allow what one of two rules allows.

    Args:
      first: the rule by which text is read if it can.
      second: the other one.
    """

    def read(text: str) -> Any:
        try:
            return first.read(text)
        except ValueError:
            return second.read(text)

    allows = f"{first.allows}, or {second.allows}"
    return Rule(allows, lambda v: first.accepts(v) or second.accepts(v), read)


def sequence(rule: Rule, *, most: int = 16, least: int = 0) -> Rule:
    """Allow a tuple of values, each as a rule allows.

    Args:
      rule: the rule of each value.
      most: the largest number of values.
      least: the smallest number of values.
    """

    def accepts(value: Any) -> bool:
        return (
            type(value) is tuple and least <= len(value) <= most and all(map(rule.accepts, value))
        )

    allows = (
        f"a tuple of {f'{least} to ' if least else 'at most '}{most} values, each {rule.allows}"
    )
    return Rule(allows, accepts, lambda text: tuple(_part(rule, part) for part in _parts(text)))


def together(*rules: Rule) -> Rule:
    """Allow a tuple of as many values as there are rules, each as its rule allows.

    Args:
      *rules: the rules of the values, in their order.
    """

    def accepts(value: Any) -> bool:
        return (
            type(value) is tuple
            and len(value) == len(rules)
            and all(r.accepts(v) for r, v in zip(rules, value))
        )

    def read(text: str) -> tuple:
        return tuple(_part(rule, part) for rule, part in zip(rules, _parts(text), strict=True))

    return Rule(
        f"a tuple of {len(rules)} values: {', then '.join(rule.allows for rule in rules)}",
        accepts,
        read,
    )


def _part(rule: Rule, part: Any) -> Any:
    """A value inside a tuple: as it was typed, or read by the rule, as 1e3 for a whole number."""
    typed = type(part) is str
    if not typed and rule.accepts(part):
        return part
    return rule.read(part if typed else repr(part))


def _parts(text: str) -> Sequence[Any]:
    """The values of a tuple in text: '(1, 2)', '1,2', '[1, 2]' and, of one value, '1'."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError):
        value = [part.strip() for part in text.split(",")]  # strings without quotation marks
    except ValueError:
        whole = text.strip()  # brackets around all of it, not those of a name such as f(x)
        whole = whole.strip("()[] ").rstrip(",") if whole.startswith(("(", "[")) else whole
        value = [part.strip() for part in whole.split(",")]
    return value if type(value) in (tuple, list) else (value,)


def like(value: Any) -> Rule:
    """Return the rule for a key that has none: the same type as its present value, and finite.

    Args:
      value: the present value of the key.
    """
    rules = {
        bool: flag(),
        int: integer(-(2**63), 2**63 - 1),
        float: number(-1e30, 1e30),
        str: text(),
        tuple: Rule("a tuple", _plain, lambda text: _tuples(ast.literal_eval(text))),
    }
    return rules.get(type(value), Rule("a plain value, with finite numbers", _plain, _literal))


def _literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return _tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _tuples(value: Any) -> Any:
    """The value with tuples instead of lists."""
    return tuple(map(_tuples, value)) if type(value) in (list, tuple) else value


def _plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is a finite literal of moderate size."""
    if type(value) is tuple:
        return (
            depth < DEPTH
            and len(value) <= LONGEST
            and all(_plain(part, depth + 1) for part in value)
        )
    if type(value) is str:
        return text().accepts(value)
    return (
        value is None
        or type(value) is bool
        or (type(value) in (int, float) and -1e30 <= value <= 1e30)
    )


# characters that control a terminal or the direction of writing, except tab and newline, which a
# spec may contain
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
