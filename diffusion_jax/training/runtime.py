"""What XLA must know before JAX starts. This module does not import JAX; a main calls it first."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import metadata

# Without this flag the backward pass of a convolution on a CPU takes up to three times as long. An
# XLA that does not know the flag ends the process, so it is set only for tested versions.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CPU_VALUE = "-individual_convolution"
CPU_FLAG_TESTED_WITH = ("0.10.2", "0.11.2", "0.12.0")


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
