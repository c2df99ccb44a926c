"""Signals before, after and outside the training loop end a command with one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.training.kill_battery import ROOT


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["imports", "main"])
def test_a_signal_outside_the_loop_ends_with_one_line(tmp_path, number, status, moment):
    """While the command imports, and while it is in a call that does not return to Python (a sleep
    in C stands for XLA).
    """
    script = (
        "import sys, time; sys.argv = ['-m', '--config=x']\nfrom experiments import exits\n"
        + {
            "imports": "print('ready', flush=True); time.sleep(60)",
            "main": "with exits.stoppable():\n    print('ready', flush=True)\n    time.sleep(60)",
        }[moment]
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    if moment == "imports":
        assert process.returncode == status
        assert errors == f"{number.name}: stopped before it was done; run the same command again\n"
    else:
        assert "Stopped" in errors  # what experiments.cli turns into the same line


def test_a_signal_during_a_long_call_of_xla():
    """The main thread does not come back to Python (a deadlock in C stands for XLA): the process
    ends after a moment of grace.
    """
    script = (
        "import ctypes\n"
        "from experiments import exits; exits.GRACE = 0.2\n"
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
        "with exits.stoppable():\n"
        "    print('ready', flush=True); lock(mutex); lock(mutex)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # until it is in the call
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (
        75,
        "SIGTERM: stopped before it was done; run the same command again\n",
    )


@pytest.mark.parametrize(
    "dropping",
    ["gc.callbacks.append(lambda *about: stop()); gc.collect()", "Dies(); Dies(); Dies()"],
)
def test_a_signal_where_python_drops_exceptions_is_not_lost(dropping):
    """In a callback of the garbage collector, such as jax's, and in a finalizer."""
    script = (
        "import gc, os, signal, time\n"
        "from experiments import exits\n"
        "def stop(sent=[]):\n"
        "    if len(sent) < 2: sent.append(os.kill(os.getpid(), signal.SIGTERM))\n"
        "    time.sleep(0.01)\n"
        "class Dies:\n"
        "    __del__ = lambda self: stop()\n"
        "try:\n"
        f"    with exits.stoppable(): {dropping}; time.sleep(20)\n"
        "except exits.Stopped as error: print(error.signal.name, flush=True), os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")
