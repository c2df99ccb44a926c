"""Libraries that are imported when they are first used, so that a command does without the rest.

    grain = deferred("grain")    # stands with the imports at the top of a module

The statement takes the place of an import. tests/test_layering.py reads it as one, and
tests/test_packaging.py says which libraries a command does not import.
"""

from __future__ import annotations

import importlib
import types
from typing import Any


class Deferred(types.ModuleType):
    """A module that is imported when one of its attributes is first read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def deferred(name: str) -> Any:
    """The module of this dotted name, which is not imported yet.

    Args:
      name: such as 'matplotlib.figure'.

    Returns:
      A stand-in with the module's attributes.
    """
    return Deferred(name)
