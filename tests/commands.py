"""Run `python -m experiments.NAME ...` as typed, without two seconds of imports for each command.

One process imports the library, without starting JAX, and forks for every command: the child has
the arguments, the output, the errors and the exit status of the command in a process of its own.
What needs a signal, another environment or a bare interpreter (tests/training/test_faults.py,
test_distributed.py, test_resume.py) starts one.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(
    name: str, *args, seconds: int = 0, folder: str | os.PathLike = ROOT
) -> subprocess.CompletedProcess:
    """Run a command.

    Args:
      name: the command, NAME of experiments.NAME.
      *args: its arguments.
      seconds: after which SIGALRM ends it; 0 for never.
      folder: the folder where it runs.

    Returns:
      Its returncode, stdout and stderr.
    """
    with tempfile.TemporaryDirectory() as output:
        files = [os.path.join(output, stream) for stream in ("stdout", "stderr")]
        server, line = _server(), [f"experiments.{name}", *map(str, args)]
        print(json.dumps([files, line, seconds, os.fspath(folder)]), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            line, status, *(Path(file).read_text(errors="backslashreplace") for file in files)
        )


@functools.cache
def _server() -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-m", "tests.commands"], cwd=ROOT, **pipes)
    atexit.register(server.communicate)  # the end of its orders is its end
    return server


def _serve() -> list[str] | None:
    """Answer each order with an exit status; in the child of an order, return what to run."""
    for order in iter(sys.stdin.readline, ""):
        files, line, seconds, folder = json.loads(order)
        with warnings.catch_warnings(
            action="ignore"
        ):  # JAX's threads do not survive a fork: there are none yet
            child = os.fork()
        if not child:
            signal.alarm(seconds)
            os.chdir(folder)
            for descriptor, file in enumerate((os.devnull, *files)):
                os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), descriptor)
            return line
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    for name in ("matplotlib.pyplot", "diffusion_jax.studies.samplers.cells"):
        importlib.import_module(name)  # once, for the commands of all children
    gc.freeze()  # or a collection in a child would copy every page
    if line := _serve():
        sys.argv = line
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
