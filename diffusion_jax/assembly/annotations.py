"""Which values fit the annotation of a parameter, and what to call them in a message."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

LARGEST = 1e300  # of a number in a spec

WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a text in quotation marks",
    NoneType: "None",
}
SEVERAL = {float: "numbers", int: "whole numbers", str: "texts in quotation marks"}


@functools.cache
def hints(member: Callable) -> Mapping[str, Any]:
    """Return the types of the parameters of a member of a family, {name: type}.

    Args:
      member: a function, or a class with annotated fields.
    """
    return get_type_hints(member)


def options(member: Callable) -> Mapping[str, Any] | None:
    """Return the types of `**options: Unpack[Options]`, by name.

    Args:
      member: a function, or a class with annotated fields.

    Returns:
      None where the options are not declared by a TypedDict.
    """
    (name,) = [
        parameter.name
        for parameter in inspect.signature(member).parameters.values()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    ] or [""]
    declared = get_args(hints(member).get(name))
    return get_type_hints(declared[0]) if declared else None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or another type alone.

    Args:
      hint: the type of a parameter.
    """
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def is_literal(hint: Any) -> bool:
    """Return whether only literals fit a type, never a component.

    Args:
      hint: a type that is no union.
    """
    return hint in WORDS or get_origin(hint) is tuple


def fits(value: Any, hint: Any) -> bool:
    """Return whether a literal fits a parameter.

    Args:
      value: the literal; a number must be finite.
      hint: the type of the parameter, which may be a union.
    """
    return any(_fits_one(value, one) for one in alternatives(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if type(value) not in (tuple, list):
            return False
        parts = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(parts) and all(map(fits, value, parts))
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return type(value) in kinds and abs(value) < LARGEST
    return hint is Any or type(value) is hint


def words(hint: Any, component: Callable[[Any], str]) -> str:
    """A type in words, as the end of the sentence 'it must be ...'.

    Args:
      hint: the type.
      component: the name of a component of a type that is not one of literals.
    """
    return " or ".join(_words_of_one(one, component) for one in alternatives(hint))


def _words_of_one(hint: Any, component: Callable[[Any], str]) -> str:
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if inner[-1] is not Ellipsis:
            return f"a {hint}"
        return f"a tuple of {SEVERAL[inner[0]]}"
    return WORDS.get(hint) or f"a component such as {component(hint)}()"
