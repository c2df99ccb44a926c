"""Flags for paths and whole numbers."""

from __future__ import annotations

from absl import flags

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it here

PATHS: set[str] = set()  # the flags that path_flag defined


def path_flag(name: str, default: str | None, help: str, *, required: bool = False) -> None:
    """Define a flag for a file or a folder: ~ is the home directory, and '' is refused.

    Args:
      name: the name of the flag.
      default: its default.
      help: a phrase for --help, to which the default is added.
      required: whether the command needs it.
    """
    flags.DEFINE_string(name, default, help, required=required)
    PATHS.add(name)


def integer_flag(
    name: str, default: int | None, help: str, low: int, high: int, *, required: bool = False
) -> None:
    """Define a flag for a whole number; one out of range would exhaust the memory, or hang.

    Args:
      name: the name of the flag.
      default: its default.
      help: a phrase for --help, to which the default is added.
      low: the least value.
      high: the largest value.
      required: whether the command needs it.
    """
    flags.DEFINE_integer(name, default, help, lower_bound=low, upper_bound=high, required=required)
