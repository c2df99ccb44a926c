"""--help, the list of commands, and streams that are closed or full."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import session, usage

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["train", "sample", "statistics"])
def test_help_names_flags_configs_and_overrides_and_is_no_mistake(name):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr
    assert f"python -m experiments.{name}" in done.stdout and "--workdir" in done.stdout
    assert ("configs/digits.py" in done.stdout and "Variants: ddpm, vp" in done.stdout) == (
        name != "sample"
    )
    assert ("or --nfe=20" in done.stdout) == (
        name != "statistics"
    ) and "--config.KEY=VALUE" in done.stdout


def test_the_package_lists_every_command_in_a_line_each():
    listed = usage.overview().splitlines()
    mains = {
        p.stem
        for p in (ROOT / "experiments").glob("[!_]*.py")
        if '\nif __name__ == "__main__":' in p.read_text()
    }
    assert (
        set(usage.commands()) == mains and {"train", "sample", "evaluate", "get_weights"} <= mains
    )
    for name in mains:
        [line] = [line for line in listed if line.startswith(f"  {name} ")]
        assert 20 < len(line) <= 115


def test_help_starts_without_jax_and_a_closed_pipe_is_no_traceback():
    script = "import runpy, sys; sys.argv = ['-m', 'sample', '--help']\n"
    script += "try: runpy.run_module('experiments', run_name='__main__')\n"
    script += "finally: assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "experiments"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


CLOSED = """
from experiments import cli
def count():
    for i in range(100_000):
        print(i, flush=True)
cli.launch("__main__:count", config="none")
"""


def test_a_command_whose_reader_has_gone_ends_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-c", CLOSED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_streams_that_are_closed_or_full_end_no_command_with_a_traceback():
    for redirection, status, said in (
        (">/dev/full", 2, "error: No space left on device"),
        (">/dev/full 2>/dev/full", 2, ""),
    ):
        done = subprocess.run(
            f"exec {sys.executable} -m experiments {redirection}",
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (
            done.returncode == status
            and done.stderr.startswith(said)
            and "Traceback" not in done.stderr
        )
    script = (
        "import os, sys; from experiments import exits; exits.open_closed_streams()\n"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); assert file > 2\n"
        "print('x', flush=True), print('y', file=sys.stderr, flush=True), sys.stdin.read()"
    )
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        done = subprocess.run(
            f'exec {sys.executable} -c "{script}" /dev/null {closed}',
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_names_never_steer_a_terminal():
    """What a command prints goes through a stream that escapes control characters, but for those of
    lines and progress bars.
    """
    kept = io.StringIO()
    stream = session.Escaped(kept)
    assert stream.write("a\x1b]0;title\x07\tb\n\rc") == 16
    assert kept.getvalue() == "a\\x1b]0;title\\x07\tb\n\rc" and stream.getvalue() == kept.getvalue()
