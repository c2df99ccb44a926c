"""Classes and test splits by fields, such as the digit, the speaker and the index of a recording.

Fields come from file names, by a pattern such as '{digit}_{speaker}_{index}', or from arrays with
one value for each example.

    data.class_fields=('digit', 'speaker')     the classes are the pairs that occur
    data.test_where=index=0-4                  examples with an index from 0 to 4 are held out
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.data.tree import natural

Fields = Mapping[str, Sequence[str]]  # the values of each field, one for each example
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Classes(NamedTuple):
    """Classes that fields make together.

    Attributes:
      labels: (N,) int32, the class of each example.
      names: of the classes, in natural order: the values of their fields with spaces.
      fields: (name, value of each class) of every field.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    fields: tuple[tuple[str, tuple[str, ...]], ...]


def of_names(pattern: str, names: Sequence[str], what: str) -> dict[str, list[str]]:
    """Read the fields of file names.

    Args:
      pattern: config.data.pattern, text with fields in braces. A field extends to the character
        that follows it in the pattern.
      names: file names without their endings.
      what: the data, for messages.

    Raises:
      UserError: for a pattern without fields, and for a name that does not fit it.
    """
    expression = _expression(pattern)
    found: dict[str, list[str]] = {name: [] for name in expression.groupindex}
    for name in names:
        match = expression.fullmatch(name)
        if not match:
            raise UserError(
                f"{what}: the file name '{printable(name)}' does not fit "
                f"config.data.pattern={pattern}; rename the file, or move it away"
            )
        for field, value in match.groupdict().items():
            found[field].append(value)
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, which is matched in linear time."""
    parts = _PLACE.split(pattern)  # text, field, text, field, ..., text
    texts, names = parts[::2], parts[1::2]
    if not names or len(set(names)) < len(names) or "" in texts[1:-1]:
        raise UserError(
            f"config.data.pattern={pattern}: it must have fields in braces, each with a name of "
            "its own and text between them, such as {digit}_{speaker}_{index}"
        )
    expression = re.escape(texts[0])
    for name, after in zip(names, texts[1:]):
        value = f"[^{re.escape(after[0])}]+" if after else ".+"
        expression += f"(?P<{name}>{value}){re.escape(after)}"
    return re.compile(expression)


def classes(wanted: Sequence[str], found: Fields) -> Classes:
    """Make classes of the values of some fields.

    Args:
      wanted: config.data.class_fields, the names of the fields.
      found: the values of all fields.

    Raises:
      UserError: for a field that does not exist.
    """
    for name in wanted:
        if name not in found:
            raise unknown("field of config.data.class_fields", name, found)
    rows = list(zip(*(found[name] for name in wanted)))
    order = sorted(set(rows), key=lambda row: [natural(value) for value in row])
    number = {row: i for i, row in enumerate(order)}
    return Classes(
        np.array([number[row] for row in rows], np.int32),
        tuple(printable(" ".join(row)) for row in order),
        tuple((name, tuple(row[i] for row in order)) for i, name in enumerate(wanted)),
    )


def held_out(rule: str, found: Fields, what: str) -> np.ndarray:
    """Return which examples a rule holds out.

    Args:
      rule: config.data.test_where, 'FIELD=VALUES': values with commas, whole numbers also as ranges
        such as 0-4.
      found: the values of all fields.
      what: the data, for messages.

    Returns:
      (N,) of bool.

    Raises:
      UserError: for a rule that cannot be read, or that leaves one of the splits empty.
    """
    name, equals, text = rule.partition("=")
    if not equals or not text:
        raise UserError(
            f"config.data.test_where={rule}: it must be FIELD=VALUES, such as index=0-4 or "
            "speaker=theo"
        )
    if name not in found:
        raise unknown("field of config.data.test_where", name, found)
    ranges, values = [], set()
    for part in text.split(","):
        between = re.fullmatch(r"(\d{1,9})-(\d{1,9})", part)
        if between:
            ranges.append((int(between[1]), int(between[2])))
        else:
            values.add(part)

    def held(value: str) -> bool:
        return value in values or (
            bool(re.fullmatch(r"\d{1,9}", value))
            and any(low <= int(value) <= high for low, high in ranges)
        )

    chosen = np.array([held(value) for value in found[name]])
    if chosen.all() or not chosen.any():
        some = ", ".join(map(printable, sorted(set(found[name]), key=natural)[:5]))
        which = "every example" if chosen.all() else "no example"
        raise UserError(
            f"{what}: config.data.test_where={rule} holds out {which}; values of {name} are "
            f"{some}, ..."
        )
    return chosen
