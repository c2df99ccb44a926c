"""The one place where a command imports the library, after its command line is parsed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from diffusion_jax.training import runtime


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
    """Set the flags of XLA, read once as JAX starts, the allocator and the garbage collector."""
    runtime.set_cpu_flags()
    runtime.keep_freed_memory()
    runtime.collect_rarely()
