"""The one place where a command imports the library, after its command line is parsed."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from diffusion_jax.training import runtime
from experiments import exits


def load(target: str) -> Callable[..., Any]:
    """Import a function of the library; --help and mistakes in flags never come here.

    Args:
      target: 'package.module:function'.

    Returns:
      The function.
    """
    _before_jax()
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def _before_jax() -> None:
    """Set the flags of XLA, read once as JAX starts, the allocator and the garbage collector.

    The allocator reads its variable as a process starts. So a command, of which nothing but its
    flags has been read, starts once more in its own place, as the same process of the system.
    """
    if _is_command() and runtime.ask_for_large_pages():
        exits.start_again()
    runtime.set_cpu_flags()
    runtime.collect_rarely()


def _is_command() -> bool:
    """Whether this process was started as `python -m experiments...`."""
    words = sys.orig_argv
    return "-m" in words[:-1] and words[words.index("-m") + 1].startswith("experiments")
