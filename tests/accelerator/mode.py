"""The three ways to run these tests, chosen by the environment variable ACCELERATOR_TESTS.

required (make test-accelerator): on the accelerator, against the CPU. It is an error if there is
none. cpu: the same code with tiny sizes and the CPU in both places, which shows that the tests
themselves work. Unset, as in the ordinary suite: they are collected and skipped.
"""

from __future__ import annotations

import os
from typing import TypeVar

import jax

from diffusion_jax.training import runtime

VARIABLE = "ACCELERATOR_TESTS"
MODE = os.environ.get(VARIABLE, "")
MODES = ("required", "cpu")
TINY = MODE != "required"

T = TypeVar("T")


def pick(accelerator: T, cpu: T) -> T:
    """The value for an accelerator, or the tiny one for the trial on the CPU."""
    return cpu if TINY else accelerator


def problem() -> str | None:
    """Why the tests cannot run as they were asked to; None if they can."""
    if MODE not in ("", *MODES):
        return f"{VARIABLE}={MODE}: write {' or '.join(MODES)}, or leave it unset"
    if MODE == "required" and jax.default_backend() == "cpu":
        return (
            "these tests need an accelerator, and JAX finds the CPU alone; install "
            "diffusion_jax[cuda13], [cuda12] or [tpu] on a machine that has one, or try the tests "
            f"by {VARIABLE}=cpu"
        )
    return None


def skipped() -> str | None:
    """Why the tests are skipped; None if they run. It does not start JAX."""
    if MODE:
        return None
    if runtime.cpu_only():
        return (
            "no accelerator: JAX has no plug-in for one here, or JAX_PLATFORMS=cpu "
            f"({VARIABLE}=cpu tries the tests with tiny sizes)"
        )
    return "the accelerator is not asked for: make test-accelerator runs these, one at a time"


def device() -> jax.Device:
    """The device that is tested: an accelerator, or the CPU where the tests are only tried."""
    return jax.local_devices()[0]


def host() -> jax.Device:
    """The CPU, with which the device is compared."""
    return jax.local_devices(backend="cpu")[0]
