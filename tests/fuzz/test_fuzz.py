"""Wrong input to every command: a non-zero status, one clear line, nothing written, no hang and no
control character.

A part of the cases runs in the ordinary suite, all of them in the long tests.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile

import pytest

from configs import digits, toy
from tests import commands
from tests.fuzz import cases

SECONDS = 60  # after which a command counts as hanging: the slowest honest one takes a few
TRAIN = ("--config=configs/toy.py:vp", "--config.training.steps=0")

LEAST = {
    "num": "2",
    "nfe": "2",
    "samplers": "ancestral.ddim",
    "repeats": "1",
    "features": "pixels",
    "metrics": "frechet",
    "starts": "2",
    "solved": "2",
    "iterations": "1",
    "tries": "1",
    "polish": "0",
    "steps": "1",
    "scales": "1,2",
    "draws": "1",
    "over": "sampler.nfe=[2]",
}  # of work

SAMPLED = ("sampler.",)  # the keys of a trained model that may be overridden


def faults(case: cases.Case, workdir=None) -> list[str]:
    """What is wrong with how the command answers."""
    with tempfile.TemporaryDirectory() as folder:  # for what an accepted name writes
        done = commands.run(case.command, *case.arguments, seconds=SECONDS, folder=folder)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    found = []
    if done.returncode < 0:
        found.append(f"ended by signal {-done.returncode} (14: it hung)")
    if "Traceback" in done.stderr:
        found.append("a traceback: " + done.stderr.strip().splitlines()[-1])
    if done.returncode == 0 and case.sure:
        found.append("accepted")
    if done.returncode not in (0, 2) and not found:
        found.append(f"exit status {done.returncode}")
    if done.returncode == 2 and len(errors) != 1:
        found.append(f"{len(errors)} lines of error: {done.stderr[-300:]!r}")
    if errors and len(errors[0]) > 1500:
        found.append(f"a line of {len(errors[0])} characters")
    if any(character in done.stderr + done.stdout for character in "\x1b\x07"):
        found.append("control characters in the output")
    if workdir is not None and os.path.exists(workdir):
        shutil.rmtree(workdir)  # for the next case
        if done.returncode:
            found.append("refused, and the workdir was made")
    return found


def report(some, workdir=None) -> None:
    """Run the cases; fail with all that is wrong."""
    wrong = [(case, found) for case in some if (found := faults(case, workdir))]
    lines = [
        f"{case.command} {' '.join(map(ascii, case.arguments))}: {'; '.join(found)}"
        for case, found in wrong
    ]
    assert not lines, "\n".join(lines)


def some(all_cases, every: int, start: int = 0):
    """Every so many-th of the cases."""
    return itertools.islice(all_cases, start % every, None, every)


def train_cases(workdir):
    base = (*TRAIN, f"--workdir={workdir}")
    yield from cases.wrong_values(toy.get_config("vp"), "train", base)
    yield from cases.wrong_values(
        digits.get_config("vp"), "train", ("--config=configs/digits.py:vp", *base[1:]), ("model.",)
    )


def flag_cases(command, base=()):
    return cases.wrong_flags(command, cases.flags_of(command), base)


def base_of(name, flags, trained, folder):
    """Arguments with which the command has little to do, where the wrong one leaves it something to
    do.
    """
    has = {flag.name for flag in flags}
    base = TRAIN if "train" in name else ()
    base += (
        (f"--workdir={folder / 'new' if 'train' in name else trained}",) if "workdir" in has else ()
    )
    base += (f"--out={folder / 'out'}",) if "out" in has else ()
    return base + tuple(f"--{flag}={value}" for flag, value in LEAST.items() if flag in has)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of points, trained for a step."""
    root = tmp_path_factory.mktemp("trained") / "run"
    done = commands.run(
        "train", "--config=configs/toy.py:vp", "--config.training.steps=1", f"--workdir={root}"
    )
    assert done.returncode == 0, done.stderr
    return root


# ---- in the ordinary suite
def test_a_wrong_value_of_every_config_key(tmp_path):
    report(cases.one_value_each(train_cases(tmp_path / "run")), tmp_path / "run")


def test_some_wrong_values_of_the_flags_of_every_command():
    typed = [case for name in cases.names() for case in flag_cases(name) if case.sure]
    report(some(typed, 12))


def test_a_wrong_value_of_every_sampling_key(trained):
    every = cases.wrong_values(toy.get_config("vp"), "sample", (f"--workdir={trained}",), SAMPLED)
    report(cases.one_value_each(every))


# ---- the rest
@pytest.mark.long
def test_all_wrong_values_of_every_config_key(tmp_path):
    report(train_cases(tmp_path / "run"), tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("name", cases.names())
def test_all_wrong_values_of_the_flags_of_a_command(name, trained, tmp_path):
    flags = cases.flags_of(name)
    report(cases.wrong_flags(name, flags, base_of(name, flags, trained, tmp_path)))


@pytest.mark.long
def test_all_wrong_values_of_the_sampling_keys(trained):
    report(cases.wrong_values(toy.get_config("vp"), "sample", (f"--workdir={trained}",), SAMPLED))
