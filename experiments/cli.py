"""How a main starts: the flags that all commands share, parsing, and one call of a function.

A main defines its flags and calls `launch("package.module:function", config=...)`. The function is
imported only after the command line is parsed, so `--help` and mistakes in flags need no JAX. It is
called as function(config, flag=value, ...), with the flags that the main defined. Several processes
of one run are joined by --coordinator=HOST:PORT --num_processes=N --process_id=I. The exit statuses
are in experiments/exits.py. No other module reads `sys.argv`.
"""

from __future__ import annotations

import keyword
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from diffusion_jax.core.errors import unknown
from experiments import arguments, exits, loading, usage, values

flags.DEFINE_string(
    "config", None, "config file and its variant, as FILE.py:VARIANT, such as configs/digits.py:vp"
)
flags.DEFINE_string(
    "coordinator",
    None,
    "address of process 0, as HOST:PORT, where the processes of one run meet (default: found on "
    "TPU pods, SLURM, Open MPI and Kubernetes, else the run has one process)",
)
values.integer_flag(
    "num_processes",
    None,
    "number of processes of the run; 1 runs alone, whatever the cluster says (default: as above)",
    1,
    1_000_000,
)
values.integer_flag(
    "process_id", None, "number of this process, from 0 (default: as above)", 0, 1_000_000
)
values.integer_flag(
    "heartbeat_timeout",
    100,
    "seconds of silence after which a process counts as dead and the others end",
    1,
    1_000_000,
)
values.integer_flag(
    "initialization_timeout", 300, "seconds to wait for all processes to appear", 1, 1_000_000
)


def begin() -> None:
    """What is done as the package is imported, before anything else: streams and signals."""
    exits.open_closed_streams()
    if sys.argv[:1] == ["-m"]:  # `python -m experiments.NAME` imports the package before NAME runs
        exits.watch_signals()


def choose() -> None:
    """List the commands, or run the one that the first argument names."""
    name = sys.argv[1].removeprefix("experiments.") if len(sys.argv) > 1 else "--help"
    if name.lstrip("-") in arguments.HELP:
        arguments.show(usage.overview())
    elif name in usage.commands():
        sys.argv = [f"experiments.{name}", *sys.argv[2:]]
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    else:
        arguments.fail(unknown("command", name, usage.commands()))


def launch(
    target: str,
    *,
    config: str,
    default: str = "",
    instead: Mapping[str, str] | None = None,
    positional: str = "",
    short: Sequence[str] = tuple(usage.SHORT),
    overridden: str = "",
    spec: str = "",
) -> None:
    """Parse the command line, then call the command's function with the config and the flags.

    Args:
      target: 'package.module:function', which is imported after parsing and called as
        function(config, **flags), with all flags that the main defined (`argument_of` names the
        parameter of a flag).
      config: where the config comes from: 'file' is --config=FILE.py:VARIANT; 'workdir' is the
        config.json of --workdir; 'either' is the latter if --workdir is given; 'none' calls the
        function without a config.
      default: the config file, where --config may be left out.
      instead: {flag: 'package.module:function'}: with this flag another function is called, without
        a config. Each of the functions gets those flags that it has a parameter for, and others
        that the command line sets are refused.
      positional: the name of the one argument without a name, if the command takes one; the
        function gets it by this name in lower case, '' where it is missing.
      short: which of the short forms --sampler, --nfe, --guidance and --steps of config keys have
        an effect in this command.
      overridden: the parameter that gets the config keys that the command line sets, if one does.
      spec: the parameter that gets the name of the config file and its variant, if one does.
    """
    instead = instead or {}
    call: list[Any] = []

    def parse(argv: list[str]) -> list[str]:
        parsed = arguments.parse(
            argv, config, default=default, modes=instead, positional=positional, short=short
        )
        given = {argument_of(name): value for name, value in parsed.flags.items()}
        if positional:
            given[positional.lower()] = parsed.rest[0] if parsed.rest else ""
        if overridden:
            given[overridden] = parsed.changed
        if spec:
            given[spec] = flags.FLAGS.config
        function = instead.get(parsed.mode, target)
        configs = [] if parsed.mode or config == "none" else [parsed.config]
        reasons = values.without_effect(parsed.flags, parsed.mode, instead) if instead else None
        reasons = reasons and {argument_of(name): why for name, why in reasons.items()}
        call.extend([function, configs, given, reasons])
        return argv[:1]

    try:
        app.run(lambda argv: loading.load("experiments.session:run")(*call), flags_parser=parse)
    except exits.Stopped as stop:  # between the command's own end and the end of the session
        print(exits.stopped_line(stop.signal), file=sys.stderr)
        sys.exit(exits.STATUS[stop.signal])


def argument_of(flag: str) -> str:
    """Name the parameter of a flag, which has an underscore after a keyword of Python (from_).

    Args:
      flag: the name of the flag without dashes.
    """
    return f"{flag}_" if keyword.iskeyword(flag) else flag
