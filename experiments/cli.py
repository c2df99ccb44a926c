"""What every main shares: a config from a file or a workdir with overrides, one clear line for a
user's mistake, exit codes.

Several processes of one run meet here before anything touches a device: --coordinator=HOST:PORT
--num_processes=N --process_id=I. Exit statuses: experiments/exits.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from absl import app, flags, logging
from ml_collections import ConfigDict

from diffusion_jax.assembly import workdir as folder
from diffusion_jax.errors import UserError, printable
from diffusion_jax.training import distributed, runtime
from experiments import arguments, exits, usage, values

UNFINISHED = exits.UNFINISHED


# Of every main. On TPU pods, SLURM, Open MPI and Kubernetes they are found out
# (training/distributed.py).
flags.DEFINE_string("config", None, "the config: FILE.py:VARIANT, such as configs/digits.py:vp")


flags.DEFINE_string(
    "coordinator", None, "several processes: HOST:PORT, an address of process 0, where all meet"
)


values.integer_flag(
    "num_processes",
    None,
    "several processes: how many; 1: run alone, whatever the cluster says",
    1,
    1_000_000,
)


values.integer_flag(
    "process_id", None, "several processes: which of them this is, from 0", 0, 1_000_000
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


def launch(
    main: Callable[..., None],
    *,
    config: str,
    default: str = "",
    without: Sequence[str] = (),
    positional: str = "",
    short: Sequence[str] = tuple(usage.SHORT),
) -> None:
    """Run main(config) with the config and the flags of the command line
    (experiments/arguments.py).

    Args:
      main: the command; with `positional` it also gets that argument, main(config, value).
      config: 'file', from --config=FILE.py:VARIANT; 'workdir', from --workdir's config.json;
        'either', the latter if --workdir is given; 'none', an empty one.
      default: the config file, where --config may be left out.
      without: flags with which the command needs no config.
      short: which of the short forms --sampler, --nfe, --guidance and --steps of config keys do
        something here.
      positional: what the argument without a name is, if there is one.
    """
    parsed = []

    def parse(argv: list[str]) -> list[str]:
        parsed.extend(
            arguments.parse(
                argv, config, default=default, without=without, positional=positional, short=short
            )
        )
        return argv[:1]

    try:
        app.run(lambda argv: _guard(main, *parsed), flags_parser=parse)
    except exits.Stopped as stop:  # between the command's own end and the end of its guard
        print(exits.stopped_line(stop.signal), file=sys.stderr)
        sys.exit(exits.STATUS[stop.signal])


def typed(flag: str) -> str | None:
    """The value of --flag=VALUE as typed, for what must be known before jax is imported; None if it
    is not given.
    """
    found = [
        arg.partition("=")[2] for arg in sys.argv[1:] if arg.lstrip("-").startswith(f"{flag}=")
    ]
    return found[-1] if found else None


def changed_keys() -> frozenset[str]:
    """The config keys that the command line set, such as 'sampler.guidance'."""
    return frozenset(arguments.CHANGED)


class Escaped:
    """A text stream that writes control characters as escapes (errors.printable): names out of
    files never steer a terminal.

    The ends of lines, tabs and the carriage returns of progress bars stay.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, and return its length."""
        self._stream.write(
            "".join(
                part if part in ("\n", "\r", "\t") else printable(part)
                for part in re.split(r"([\n\r\t])", text)
            )
        )
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _guard(main: Callable[..., None], config: ConfigDict, given: Sequence[str]) -> None:
    """Run the command; a mistake, a signal or a system that refuses ends it with one line and the
    status of `exits`.
    """
    sys.stdout, sys.stderr = Escaped(sys.stdout), Escaped(sys.stderr)
    logging.set_verbosity(logging.WARNING)  # jax tells at INFO which accelerators are absent
    runtime.enable_compilation_cache()
    try:
        with exits.stoppable():
            _join()
            with distributed.quiet_others():
                main(config, *given)
            sys.stdout.flush()  # a full disk shows here, not in a traceback at exit
    except exits.Stopped as stop:
        exits.say(exits.stopped_line(stop.signal))
        distributed.leave(exits.STATUS[stop.signal])
    except BrokenPipeError:  # whoever read the output has gone: | head
        arguments.close_pipe()
        distributed.leave(exits.CLOSED)
    except KeyboardInterrupt:
        exits.say("SIGINT: stopped at once; run the same command again")
        distributed.leave(exits.INTERRUPTED)
    except Exception as error:
        status, line = _explained(error)
        if line is None or exits.wants_traceback():
            raise
        exits.say(f"error: {printable(line)}")
        distributed.leave(status)


def _explained(error: Exception) -> tuple[int, str | None]:
    """(exit status, the line to print) of an error that the user or the system caused; None for a
    fault of ours.
    """
    if isinstance(error, UserError):
        return exits.MISTAKE, str(error)
    if isinstance(error, OSError) and error.strerror:
        return exits.MISTAKE, exits.system_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]:
        return exits.MISTAKE, (
            "out of memory: lower config.data.batch_size or config.sampler.batch_size, or the width of the "
            "network; config.model.remat=block trades memory for time"
        )
    return exits.UNFINISHED, distributed.lost(error)


def _join() -> None:
    """Meet the other processes of this run, if there are any."""
    FLAGS = flags.FLAGS
    distributed.initialize(
        FLAGS.coordinator,
        FLAGS.num_processes,
        FLAGS.process_id,
        timeout=FLAGS.initialization_timeout,
        heartbeat_timeout=FLAGS.heartbeat_timeout,
    )


def saved_config(workdir: str) -> ConfigDict:
    """The resolved config of a workdir, locked. UserError where there is none."""
    return folder.saved_config(workdir)
