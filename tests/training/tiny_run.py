"""A tiny run (points, an MLP) by the real command, which the fault tests disturb."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest

from configs import toy
from diffusion_jax.assembly import train
from tests.training.kill_battery import CHANGES, ROOT, command, fingerprint

STEPS = (
    24  # a checkpoint every 4, a row every 3, the held-out loss at the end (kill_battery.CHANGES)
)


def config(**changes):
    chosen = toy.get_config("vp")
    chosen.update_from_flattened_dict(
        CHANGES
        | {"training.steps": STEPS, "training.eval_every": STEPS}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return chosen.lock()


@contextlib.contextmanager
def mounted(path, options):
    """A small file system of its own."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def child(root, *before, **environ):
    """The command, in a process of its own. before: the beginning of a longer command."""
    environ = (
        os.environ | {"PYTHONPATH": str(ROOT), "GIT_OPTIONAL_LOCKS": "0"} | environ
    )  # provenance asks git: it must not
    # begin to write the index of this repository where files may not grow, or where it is killed:
    # its lock would stay
    line = command(root, STEPS) + [f"--config.training.eval_every={STEPS}"]
    return subprocess.Popen(
        [*before, *line], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
    )


def one_error(text):
    """The line of the error, without a traceback."""
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def nothing_half_written(root):
    """Check that no file is half written.

    The folder that Orbax may still write as the process ends is left out: it is never read, and it
    is removed at the next start.
    """
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    return not [name for name in names if "tmp" in name and ".orbax-checkpoint-tmp" not in name]


def ends_the_same(root, undisturbed, **changes):
    assert train.train(config(**changes), str(root))
    assert not [path for path in root.rglob("*") if "tmp" in path.name]
    return fingerprint(root, STEPS) == undisturbed[1]
