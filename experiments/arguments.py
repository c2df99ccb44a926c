"""The command line of a command: its flags, its config, overrides of config keys, and --help.

    --flag=VALUE or --flag VALUE                 flags of the command
    --config=FILE.py:VARIANT                     the config, of commands that train; others
                                                 take that of --workdir
    --config.KEY=VALUE or --config.KEY VALUE     overrides any key; given twice, the last counts
    --sampler, --nfe, --guidance, --steps        short for config keys (usage.SHORT), where the
                                                 command has no such flag of its own

diffusion_jax/assembly/config_schema.py reads and checks values. A mistake is one line and exit
status 2; --help has exit status 0.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax.assembly import config_schema
from diffusion_jax.core import buckets, parsing, staging
from diffusion_jax.core.errors import UserError, nearest, printable, unknown
from experiments import exits, loading, usage, values

HELP = ("help", "h", "helpshort", "helpfull", "?")


class Given(NamedTuple):
    """An argument as it was typed: --name=value; the value of a flag that had none is None."""

    name: str
    value: str | None


def show(text: str) -> NoReturn:
    """Print the answer to --help and exit with status 0; a closed pipe (| head) is no mistake.

    Args:
      text: the whole answer, of several lines.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        close_pipe()
    except OSError as error:
        close_pipe()
        fail(exits.system_line(error))
    sys.exit(0)


def close_pipe() -> None:
    """Let Python's own flush at exit find an open stdout, after the reader of the pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: Exception | str) -> NoReturn:
    """Print one line for a mistake and exit with status 2.

    Args:
      error: the error or its message; line breaks become spaces.
    """
    line = staging.shown(" ".join(str(error).split()))
    exits.say(f"error: {printable(line)}")
    sys.exit(exits.MISTAKE)


class Parsed(NamedTuple):
    """What a command line says.

    config: the config with its overrides, locked; empty where the command needs none.
    rest: the arguments without a name.
    flags: the value of every flag that the command defines.
    mode: the name of the flag that changes what the command does; '' if no such flag is set.
    changed: the config keys that the command line set.
    """

    config: ConfigDict
    rest: list[str]
    flags: dict[str, Any]
    mode: str
    changed: frozenset[str]


# ---- parsing
def parse(
    argv: Sequence[str],
    source: str,
    *,
    default: str = "",
    modes: Iterable[str] = (),
    positional: str = "",
    short: Iterable[str] = usage.SHORT,
    module: str = "",
) -> Parsed:
    """Parse the command line of a command; ends the process for --help and for a mistake.

    Args:
      argv: the arguments as typed, the program first.
      source: where the config comes from: 'file', 'workdir', 'either' (workdir if --workdir is
        given) or 'none'.
      default: the config file, if --config is not given.
      modes: flags that change what the command does, such as --list; it then needs no config.
      positional: the name of the one argument without a name, if the command takes one.
      short: the short forms of config keys that have an effect in the command, of usage.SHORT.
      module: the name of the command's module, for --help (default: that of the program).

    Returns:
      What the command line says; absl's flags are set, too.

    Raises:
      SystemExit: after --help, and for a mistake in the command line.
    """
    try:
        given, rest = _split(flags.FLAGS.read_flags_from_files(list(argv))[1:], positional)
        own_flags = [flag.name for flag in own()]
        if any(one.name in HELP for one in given):
            show(_help(source, short, module or Path(argv[0]).stem, positional))
        names = {one.name for one in given if str(one.value).lower() != "false"}
        mode = next((flag for flag in modes if flag in names), "")
        neither = source == "either" and not names & {"workdir", "config"}
        if source == "either":
            source = "workdir" if "workdir" in names else "file"
        source = "none" if mode else source
        spec, changes, typed = _sorted(given, source, usage.short(source, short))
        _check_names(typed, source, usage.short(source, short))
        _remember_addresses(given)
        _read_flags(argv[0], typed, source)  # which ends the process for --helpxml
        if neither:
            raise UserError(
                "--workdir is missing: the folder of a trained model; or give a config file, "
                "such as --config=configs/digits.py:vp"
            )
        _remember(changes)
        config = _config(spec, source, default, changes)
        found = {name: flags.FLAGS[name].value for name in own_flags}
        return Parsed(config, rest, found, mode, frozenset(key for key, _ in changes))
    except (UserError, flags.Error) as error:
        if exits.wants_traceback():
            raise
        fail(error)
    except OSError as error:
        fail(exits.system_line(error))


def _split(arguments: Sequence[str], positional: str) -> tuple[list[Given], list[str]]:
    """The arguments as names and values; a value may follow its flag after a space."""
    given, rest, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-") or argument in ("-", "--"):
            if not positional or rest:
                raise UserError(
                    f"cannot use the argument '{argument:.60}'; values are set as --flag=value or "
                    "--config.KEY=VALUE"
                )
            rest.append(argument)
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and _is_value(name, waiting[0]) else None
        given.append(Given(name, value))
    return given, rest


def _is_value(name: str, following: str) -> bool:
    """Whether the argument after --name is its value, rather than another flag."""
    if name in HELP or name.startswith("no") and name not in flags.FLAGS:
        return False
    if name in flags.FLAGS and flags.FLAGS[name].boolean:
        return following.lower() in ("true", "false")
    return not following.startswith("-") or bool(re.match(r"-[\d.]", following))


def _sorted(
    given: Iterable[Given], source: str, short: Mapping[str, str]
) -> tuple[str | None, list[tuple[str, str | None]], list[Given]]:
    """(the value of --config, changes of its keys in order, flags of the command's own)."""
    spec, changes, own = None, [], []
    for one in given:
        key = one.name.removeprefix("no") if one.name.startswith("noconfig.") else one.name
        if one.name == "config" and source == "file":
            if not one.value:
                raise UserError("--config is empty; for example --config=configs/digits.py:vp")
            spec = one.value
            own.append(one)
        elif one.name == "config":
            where = "takes the config of --workdir" if source == "workdir" else "takes no config"
            raise UserError(
                f"--config={one.value}: this command {where}; leave --config out"
                if source == "none"
                else f"--config={one.value}: this command {where}; override a key of it by "
                "--config.KEY=VALUE"
            )
        elif key.startswith("config."):
            changes.append((key.removeprefix("config."), one.value if key == one.name else "false"))
        elif one.name in short and one.name not in flags.FLAGS:
            changes.append((short[one.name], one.value))
        else:
            own.append(one)
    if changes and source == "none":
        raise UserError(
            f"--config.{changes[0][0]}: this command takes no config here; leave it out"
        )
    return spec, changes, own


def _check_names(own: Iterable[Given], source: str, short: Mapping[str, str]) -> None:
    """Raise UserError for a flag that does not exist, with the nearest flag or config key."""
    known = [flag for flag in _ours() if flag.name != "config"]
    for one in own:
        name = one.name
        if name in flags.FLAGS or (
            name.startswith("no") and name[2:] in flags.FLAGS and flags.FLAGS[name[2:]].boolean
        ):
            continue
        if source != "none":
            _check_keys(name, source, [flag.name for flag in known])
        more = ["--config"] if source == "file" else []
        more += [f"--{form}" for form in short]
        raise unknown(
            "flag", f"--{name}", dict.fromkeys([*(f"--{flag.name}" for flag in known), *more])
        )


def _check_keys(name: str, source: str, known: Sequence[str]) -> None:
    """Raise UserError for an unknown flag that a config key has the name of."""
    if name == "steps" and source == "workdir":
        raise UserError(
            f"--{name} sets config.{usage.SHORT[name]}, which only training uses; network "
            "evaluations are --nfe"
        )
    if name in usage.SHORT and not nearest(name, known, cutoff=0.8):
        raise UserError(
            f"unknown flag '--{name}': config.{usage.SHORT[name]} does nothing in this command; "
            "--help lists its flags"
        )
    # with a trained model the other keys have no effect
    useful = "" if source == "file" else ("sampler.", "data.")
    for key in config_schema.KEYS:
        if name in (key, key.rpartition(".")[2]) and key.startswith(useful):
            raise UserError(f"unknown flag '--{name}'; did you mean '--config.{key}'?")


def _read_flags(program: str, own: Sequence[Given], source: str) -> None:
    """Set absl's flags; raise UserError for a value of another type, out of range or missing."""
    for one in own:
        if one.value is None and one.name in flags.FLAGS and not flags.FLAGS[one.name].boolean:
            raise UserError(f"--{one.name} has no value; write --{one.name}=VALUE")
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", one.value or ""):
            raise UserError(
                f"--{one.name}={one.value:.60}: it has control characters; leave them out"
            )
        blank = one.value is not None and not one.value.strip(" \t\n,;")
        if blank and one.name not in values.PATHS:
            raise UserError(
                f"--{one.name} is empty; write a value, or leave the flag out (is a shell variable "
                "unset?)"
            )
    texts = [f"--{one.name}" if one.value is None else f"--{one.name}={_value(one)}" for one in own]
    try:
        flags.FLAGS([program, *texts])
    except flags.IllegalFlagValueError as error:
        if missing := re.match(
            r"flag --(\w+)=None: Flag --\w+ must have a value other than None", str(error)
        ):
            raise UserError(f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}") from None
        raise UserError(str(error).removeprefix("flag ")) from None
    for flag in _ours():
        if flag.name in values.PATHS and flag.value is not None and flag.present:
            if not flag.value.strip():
                raise UserError(
                    f"--{flag.name} is empty; name a path, or leave the flag out (is a shell "
                    "variable unset?)"
                )
            trains = source == "file" and flag.name == "workdir"
            flag.value = _path(flag.name, flag.value, trains=trains)


def _path(name: str, text: str, *, trains: bool = False) -> str:
    """The local path of a flag's value; what it names elsewhere is fetched first.

    The workdir of a command that trains is no trained model yet, so it has no bare name.
    """
    flag, kind = f"--{name}", {**values.USUAL, **values.PATHS}[name]
    if kind == values.MODEL and not trains:
        text = text if buckets.is_url(text) else parsing.expand_home(flag, text)
        return loading.load("diffusion_jax.pretrained.addresses:resolve")(text, flag)
    if not buckets.is_url(text):
        return parsing.expand_home(flag, text)
    if kind == values.DATA:
        return text
    if kind == values.READ:
        return staging.local(text, flag, writable=False)
    if kind in (values.MODEL, values.FOLDER):
        return staging.local(text, flag)
    if kind == values.FILE:
        folder, _, file = text.rpartition("/")
        if not file or folder.count("/") < 3:
            raise UserError(
                f"{flag}={text}: name a file in a folder of the bucket, URL/FOLDER/NAME"
            )
        return os.path.join(staging.local(folder, flag), file)
    raise UserError(
        f"{flag}={text}: it must be a local path; --workdir, the data and results may be in a "
        "bucket"
    )


def _value(one: Given) -> str:
    """The text of a flag's value, checked here because absl's messages name Python's functions."""
    if one.name not in flags.FLAGS:
        return one.value
    parser, text = flags.FLAGS[one.name].parser, one.value
    kind = parser.flag_type()
    if choices := getattr(parser, "enum_values", None):
        if text not in choices:
            raise unknown(f"value of --{one.name}", text, choices)
        return text
    if kind not in ("int", "float"):
        return text
    try:
        number = (
            float(text)
            if kind == "float" or not re.fullmatch(r"\s*[-+]?[\d_]+\s*", text)
            else int(text)
        )
        number = int(number) if kind == "int" else number
        if not math.isfinite(number) or (kind == "int" and number != float(text)):
            raise ValueError
        parser.parse(str(number))
    except (ValueError, OverflowError):
        what = f"a {parser.syntactic_help}".replace("a a", "a")
        raise UserError(f"--{one.name}={text:.60}: it must be {what}") from None
    return str(number)


def _remember(changes: Sequence[tuple[str, str | None]]) -> None:
    """Note the data paths that the user typed: a stored config may lead to them from now on."""
    for key, text in changes:
        if text and key.startswith("data.") and config_schema.rule(key).is_path:
            loading.load("diffusion_jax.data.consent:remember")(text)


def _remember_addresses(given: Sequence[Given]) -> None:
    """Note the addresses of models that the user typed, in a flag or within a config key."""
    for one in given:
        for address in re.findall(r"(?:https?|hf)://[^\s,;'\")]+", one.value or ""):
            loading.load("diffusion_jax.data.consent:remember")(address)


def own() -> list[flags.Flag]:
    """The flags that the command defines: neither those of all commands nor those of a library."""
    shared = set(_shared())
    return [flag for flag in _ours() if flag not in shared]


def _ours() -> Iterator[flags.Flag]:
    """The flags of this project: a main is not in sys.modules by the name that absl gives it."""
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments.") or module not in sys.modules:
            yield from found


def _shared() -> list[flags.Flag]:
    return flags.FLAGS.flags_by_module_dict().get("experiments.cli", [])


def _help(source: str, short: Iterable[str], module: str, positional: str) -> str:
    sources = {"either": ["file", "workdir"]}.get(source, [source])
    doc = sys.modules["__main__"].__doc__ or ""
    return usage.of_command(doc, own(), _shared(), sources, module, short, positional)


def _config(
    spec: str | None, source: str, default: str, changes: Sequence[tuple[str, str | None]]
) -> ConfigDict:
    """The config of the command, with its overrides."""
    if source == "none":
        return ConfigDict()
    if source == "workdir":
        where = flags.FLAGS.workdir
        if where is None:
            raise UserError("--workdir is missing: the folder that experiments.train wrote")
        config = loading.load("diffusion_jax.assembly.workdir:saved_config")(where)
    else:
        if not (spec or default):
            raise UserError("--config is missing; for example --config=configs/digits.py:vp")
        flags.FLAGS.config = spec or default  # the name that tables and records show
        config = loading.load("diffusion_jax.assembly.config_files:load_config")(spec or default)
    loading.load("diffusion_jax.assembly.config_files:apply")(config, changes)
    return config
