"""A command's run: compiled programs are cached, processes joined, and every end has its status."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import flags, logging

from diffusion_jax.core import staging
from diffusion_jax.core.errors import CommandExit, UserError, printable
from diffusion_jax.training import distributed
from experiments import arguments, exits, loading


class Escaped:
    """A text stream that writes control characters as escapes, so that no name steers a terminal.

    The ends of lines, tabs and the carriage returns of progress bars stay (errors.printable). The
    local folder of a workdir in an object store is written as its URL.

    Args:
      stream: the stream that is written to, such as sys.stdout.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, and return its length.

        Args:
          text: text with any characters, such as the name of a file.
        """
        self._stream.write(
            "".join(
                part if part in ("\n", "\r", "\t") else printable(part)
                for part in re.split(r"([\n\r\t])", staging.shown(text))
            )
        )
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(
    target: str,
    positional: Sequence[Any],
    named: Mapping[str, Any],
    without_effect: Mapping[str, str] | None = None,
) -> None:
    """Import and run a command; every mistake, signal or refusal of the system ends with one line.

    Args:
      target: the function, as 'package.module:function'.
      positional: its arguments without names: the config, if it has one.
      named: its arguments with names.
      without_effect: None: the function takes all of them. Else those that it has no parameter for
        are left out, and one that is a key here is refused by this message.

    Raises:
      SystemExit: with the status of a command that fails.
    """
    sys.stdout, sys.stderr = Escaped(sys.stdout), Escaped(sys.stderr)
    logging.set_verbosity(logging.WARNING)  # jax lists absent accelerators at INFO
    enable_compilation_cache()
    try:
        with exits.stoppable():
            function = loading.load(target)
            if without_effect is not None:
                known = inspect.signature(function).parameters
                refused = [why for name, why in without_effect.items() if name not in known]
                if refused and known:  # what only prints a list takes none
                    raise UserError(refused[0])
                named = {name: value for name, value in named.items() if name in known}
            _join()
            with distributed.quiet_others(), _sending():
                function(*positional, **named)
            sys.stdout.flush()  # a full disk shows here, not in a traceback at exit
    except CommandExit as end:
        sys.exit(end.status)
    except exits.Stopped as stop:
        exits.say(exits.stopped_line(stop.signal))
        distributed.leave(exits.STATUS[stop.signal], at_once=True)
    except BrokenPipeError:  # the reader of the output has gone, as in | head
        arguments.close_pipe()
        distributed.leave(exits.CLOSED)
    except KeyboardInterrupt:
        exits.say("SIGINT: stopped at once; run the same command again")
        distributed.leave(exits.INTERRUPTED, at_once=True)
    except Exception as error:
        status, line = explained(error)
        if line is None or exits.wants_traceback():
            raise
        exits.say(f"error: {printable(line)}")
        distributed.leave(status)


@contextlib.contextmanager
def _sending() -> Iterator[None]:
    """Send what the block has changed in workdirs that are in object stores, when it is done."""
    try:
        yield
    except CommandExit:
        if distributed.first():
            staging.push()
        raise
    if distributed.first():
        staging.push()


def enable_compilation_cache(directory: str | os.PathLike | None = None) -> Path:
    """Keep compiled programs on disk, so that the next run of a command need not compile them.

    Args:
      directory: the folder (default $JAX_COMPILATION_CACHE_DIR, else ~/.cache/diffusion_jax/xla).

    Returns:
      The folder.
    """
    home = Path.home() / ".cache" / "diffusion_jax" / "xla"
    chosen = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or home
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    # small programs too: a command runs dozens of them before its first step
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return Path(chosen)


def explained(error: Exception) -> tuple[int, str | None]:
    """Return the exit status and the line to print for the error that ended a command.

    Args:
      error: the error.

    Returns:
      (status, line); the line is None for a fault of this program, whose traceback is shown.
    """
    if isinstance(error, UserError):
        return exits.MISTAKE, str(error)
    if isinstance(error, OSError) and error.strerror:
        return exits.MISTAKE, exits.system_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]:
        return exits.MISTAKE, (
            "out of memory: lower config.data.batch_size or config.sampler.batch_size, or the "
            "width of the network; config.model.remat=block trades memory for time"
        )
    return exits.UNFINISHED, distributed.lost(error)


def _join() -> None:
    """Join the other processes of this run, if there are any."""
    given = flags.FLAGS
    distributed.initialize(
        given.coordinator,
        given.num_processes,
        given.process_id,
        timeout=given.initialization_timeout,
        heartbeat_timeout=given.heartbeat_timeout,
    )
