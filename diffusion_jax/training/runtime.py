"""What must be set before JAX starts. This module does not import JAX; a main calls it first."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import MutableMapping
from importlib import metadata

# Without this flag the backward pass of a convolution on a CPU takes up to three times as long. An
# XLA that does not know the flag ends the process, so it is set only for tested versions.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CPU_VALUE = "-individual_convolution"
CPU_FLAG_TESTED_WITH = ("0.10.2", "0.11.2", "0.12.0")
# mallopt(3): one arena, no blocks of their own mapping, and memory that is freed is kept.
ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1
KEPT = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
# Python's default is to look for cycles of garbage after every 700 new objects.
COLLECT_EVERY = 100_000


def set_cpu_flags(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Add the flag for fast convolutions on CPUs to XLA_FLAGS.

    It is added only if JAX will use the CPU and the flag was tested with this version of jaxlib.
    Flags that the user has set stay, and take precedence.

    Args:
      environ: the environment variables, changed in place.

    Returns:
      Whether the flag was added.
    """
    flags = environ.get("XLA_FLAGS", "")
    version = metadata.version("jaxlib")
    tested = any(
        version == known or version.startswith(known + ".") for known in CPU_FLAG_TESTED_WITH
    )
    if CPU_FLAG in flags or not tested or not cpu_only(environ):
        return False
    environ["XLA_FLAGS"] = f"{flags} {CPU_FLAG}={CPU_VALUE}".strip()
    return True


def keep_freed_memory(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Let the C library keep memory that is freed, for the next step of a program on the CPU.

    XLA's CPU allocates the temporary memory of a program anew for each call. By default glibc
    returns it to the system after the call, and the next call touches new pages, which took a fifth
    of the time of a training step (docs/scaling.md). The process keeps its peak memory until it
    ends.

    It is done only if JAX will use the CPU, with glibc, and where the user has set none of its
    variables (MALLOC_* and GLIBC_TUNABLES).

    Args:
      environ: the environment variables.

    Returns:
      Whether it was done.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ)
    if own or platform.libc_ver()[0] != "glibc" or not cpu_only(environ):
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(key, value) == 1 for key, value in KEPT.items())


def collect_rarely() -> None:
    """Let Python look for cycles of garbage after many new objects instead of few.

    Tracing a network makes millions of objects that live on, which each search walks again. What
    is in no cycle, arrays among it, is freed at once as before.
    """
    gc.set_threshold(COLLECT_EVERY, *gc.get_threshold()[1:])


def cpu_only(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether JAX will run on the CPU, without starting it.

    It will if JAX_PLATFORMS says so, or if no plug-in for another platform is installed.

    Args:
      environ: the environment variables.
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    plugins = [point.name for point in metadata.entry_points(group="jax_plugins")]
    return not plugins and not any(_installed(name) for name in ("libtpu", "libtpu-nightly"))


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
