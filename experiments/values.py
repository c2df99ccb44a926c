"""Values of flags: paths, lists of numbers, and where a command writes."""

from __future__ import annotations

from absl import flags

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it here


PATHS: set[str] = set()  # the flags that path_flag defined


def path_flag(name: str, default: str | None, help: str, *, required: bool = False) -> None:
    """Define a flag for a file or a folder: ~ means the home directory, and an empty value is
    refused.
    """
    flags.DEFINE_string(name, default, help, required=required)
    PATHS.add(name)


def integer_flag(
    name: str, default: int | None, help: str, low: int, high: int, *, required: bool = False
) -> None:
    """Define a flag for a whole number from low to high: an absurd one is refused, rather than to
    hang or exhaust the memory.
    """
    flags.DEFINE_integer(name, default, help, lower_bound=low, upper_bound=high, required=required)
