"""Parse command lines by the commands' own parsers, in one process: what tests/test_docs.py asks of
every line of the documentation.

Reads a JSON list of [command, arguments ...] on stdin; writes a JSON list on stdout, for each the
line that the command prints about a mistake, or null. Nothing is run: of every command only the
definitions of its flags and the parsing of its arguments. Workdirs need not exist; they have the
config of the digits. Files of arrays need not exist either; they hold series.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
import warnings

import numpy as np
from absl import flags

from diffusion_jax.assembly import config_files, workdir
from diffusion_jax.data import any_shape, tensor_sets
from experiments import cli


class Parsed(Exception):
    """Parsing is done; nothing further is run."""


def parse(command: str, *arguments: str) -> str | None:
    """The mistake in a command line, or None."""
    before, said = set(flags.FLAGS), io.StringIO()
    sys.argv = [f"experiments.{command}", *arguments]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(f"experiments.{command}", run_name="__main__")
    except Parsed:
        return None
    except SystemExit as stop:  # 0: --help
        return (said.getvalue().strip() or f"ended with {stop.code}") if stop.code else None
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
    return "parsed nothing: the command does not call cli.launch"


def stop_after_parsing(main, flags_parser) -> None:
    flags_parser(sys.argv)
    raise Parsed


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # runpy's, of modules that others have imported
    cli.app.run = stop_after_parsing
    any_shape.described = tensor_sets.described = lambda *set: ((32, 2), np.dtype("float32"))
    workdir.saved_config = lambda *where: config_files.load_config("configs/digits.py:vp")
    found = []
    for line in json.load(sys.stdin):
        try:
            found.append(parse(*line))
        except ImportError as error:
            found.append(str(error))
    print(json.dumps(found))
