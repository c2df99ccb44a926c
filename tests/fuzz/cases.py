"""Wrong inputs, generated from the flags that every command has and from the config keys.

A key or a flag that is added is fuzzed from that day on, without being named here. `sure` marks
values that are wrong by the type of the flag or key alone: a command that accepts one has a fault.
Others may be accepted, but must not crash or hang.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ml_collections import ConfigDict

from diffusion_jax.assembly import config_schema
from tests import commands

TERMINAL = "\x1b]0;title\x07\x1b[2J"  # what would clear the screen if it reached a terminal
NUMBERS = ("x", "", "nan", "-inf", "1e400", "1,2", TERMINAL)
TEXTS = ("", "nosuch", "-1", "nan,,", "((((", "x" * 300, "/dev/null", TERMINAL)

SPECS = (
    "nosuch",
    "((((",
    "x(",
    "{0}(bogus=1)",
    "{0}(nosuch.nosuch())",
    "{0}(__import__('os'))",
    "lambda: 0",
    "1",
    TERMINAL,
)

SHARED = (
    "coordinator",
    "num_processes",
    "process_id",
    "heartbeat_timeout",
    "initialization_timeout",
)  # of all commands


class Case(NamedTuple):
    """A command line. sure: no command may accept it."""

    command: str
    arguments: tuple[str, ...]
    sure: bool


class Flag(NamedTuple):
    """A flag of a command, as absl describes it."""

    name: str
    type: str


def names() -> list[str]:
    """Every command: the modules of experiments that launch one."""
    folder = commands.ROOT / "experiments"
    return sorted(
        path.stem
        for path in folder.glob("*.py")
        if "cli.launch(" in path.read_text() and path.stem != "cli"
    )


def flags_of(command: str) -> list[Flag]:
    """The flags that a command defines, without those of the libraries below it."""
    text = commands.run(command, "--helpxml").stdout
    tree = ElementTree.fromstring(text[text.index("<?xml") :])
    own = (Path("experiments") / f"{command}.py", Path("experiments") / "cli.py")
    found = []
    for flag in tree.iter("flag"):
        name, file = flag.findtext("name"), flag.findtext("file") or ""
        if (
            file.endswith(tuple(map(str, own)))
            and not name.startswith("config")
            and name not in SHARED
        ):
            found.append(Flag(name, flag.findtext("type") or "string"))
    return found


def wrong_flags(command: str, flags: list[Flag], base: tuple[str, ...]) -> Iterator[Case]:
    """Every flag of a command with every value that is wrong, or odd, for its type, after the
    arguments `base`.
    """
    for flag in flags:
        if flag.type in ("int", "float"):
            yield from (Case(command, (*base, f"--{flag.name}={value}"), True) for value in NUMBERS)
        elif flag.type == "bool":
            yield from (
                Case(command, (*base, f"--{flag.name}={value}"), True)
                for value in ("maybe", TERMINAL)
            )
        else:
            least = any(
                argument.startswith(f"--{flag.name}=") for argument in base
            )  # and nothing means a great deal
            yield from (
                Case(command, (*base, f"--{flag.name}={value}"), value == TERMINAL)
                for value in TEXTS[least:]
            )
    yield Case(command, (*base, "--nosuch=1"), True)
    yield Case(command, (*base, "stray"), True)


def wrong_values(
    config: ConfigDict, command: str, base: tuple[str, ...], prefixes: tuple[str, ...] = ("",)
) -> Iterator[Case]:
    """Every key of a config with values that are wrong for its type."""
    for key, value in leaves(config):
        if key.startswith(prefixes):
            for wrong, sure in values_for(key, value):
                yield Case(command, (*base, f"--config.{key}={wrong}"), sure)


def one_value_each(cases: Iterable[Case]) -> Iterator[Case]:
    """One case for each key of a config: the first kind of mistake for the first key, the second
    for the next, and so on.
    """
    by_key: dict[str, list[Case]] = {}
    for case in cases:
        by_key.setdefault(case.arguments[-1].partition("=")[0], []).append(case)
    for i, each in enumerate(by_key.values()):
        yield each[i % len(each)]


def values_for(key: str, value: Any) -> list[tuple[str, bool]]:
    """(text, sure) of values that are wrong for a key with this value."""
    if isinstance(value, bool):
        return [(wrong, True) for wrong in ("maybe", "2", "", "nan")]
    if isinstance(value, int):
        return [
            (wrong, True)
            for wrong in ("x", "", "nan", "inf", "1.5", "1e400", "-7", "99999999999999999999")
        ]
    if isinstance(value, float):
        return [(wrong, True) for wrong in ("x", "", "nan", "inf", "-inf", "1e400", "-7.0")]
    if isinstance(value, (tuple, list)):
        return [
            (wrong, True)
            for wrong in ("(((", "(nan,)", "({},)", "(1,[2,(3,)])", "x" * 300, "(-7,)")
        ]
    if isinstance(value, str) and ("." in value or "(" in value):
        return [(wrong.replace("{0}", value.partition("(")[0]), True) for wrong in SPECS]
    chosen = bool(config_schema.rule(key, value).choices)
    return [
        (wrong, chosen or wrong == TERMINAL) for wrong in ("nosuch", "x" * 300, "((((", TERMINAL)
    ]


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every value of a config."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
