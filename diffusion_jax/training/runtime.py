"""What must be set before JAX starts. This module does not import JAX; a main calls it first."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

# Without this flag the backward pass of a convolution on a CPU takes up to three times as long. An
# XLA that does not know the flag ends the process, so it is set only for tested versions.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CPU_VALUE = "-individual_convolution"
CPU_FLAG_TESTED_WITH = ("0.10.2", "0.11.2", "0.12.0")
LARGE_PAGES = "glibc.malloc.hugetlb=1"  # a tunable of glibc, which reads it as a process starts
LARGE_PAGES_SINCE = (2, 35)  # the version of glibc
ON_REQUEST = Path("/sys/kernel/mm/transparent_hugepage/enabled")
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


def ask_for_large_pages(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Set the variable by which a process that starts with it has memory in pages of 2 MiB.

    XLA's CPU allocates the temporary memory of a program anew for each call, a gigabyte for a
    training step of a small U-Net. In pages of 4 KiB the system's work for them takes a fifth of
    the step (docs/speed.md).

    It is done only if JAX will use the CPU, with a glibc that knows the variable, on a system that
    has large pages on request ("madvise"), and where the user has set no variable of malloc
    (MALLOC_* and GLIBC_TUNABLES). So the process that was started with it asks for nothing.

    Args:
      environ: the environment variables, changed in place.

    Returns:
      Whether the variable was set.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environ)
    if own or not _has_large_pages() or not cpu_only(environ):
        return False
    environ["GLIBC_TUNABLES"] = LARGE_PAGES
    return True


def _has_large_pages() -> bool:
    library, version = platform.libc_ver()
    known = library == "glibc" and tuple(map(int, version.split(".")[:2])) >= LARGE_PAGES_SINCE
    try:
        return known and "[madvise]" in ON_REQUEST.read_text()
    except OSError:
        return False


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
