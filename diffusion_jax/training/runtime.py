"""Flags of XLA, which must be set before JAX starts; this module does not import jax."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import metadata

# Without it the backward pass of a convolution on a CPU takes up to three times as long. An XLA
# that does not know the flag ends the process, so it is set only for versions it was tried on.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CPU_VALUE = "-individual_convolution"
CPU_FLAG_TRIED_ON = ("0.10.2", "0.11.2", "0.12.0")


def set_cpu_flags(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Append the fast-convolution flag to XLA_FLAGS, if jax will use the CPU and the jaxlib is one
    it was tried on.

    The user's own flags stay, and win. Returns whether the flag was added.
    """
    flags = environ.get("XLA_FLAGS", "")
    version = metadata.version("jaxlib")
    tried = any(version == known or version.startswith(known + ".") for known in CPU_FLAG_TRIED_ON)
    if CPU_FLAG in flags or not tried or not cpu_only(environ):
        return False
    environ["XLA_FLAGS"] = f"{flags} {CPU_FLAG}={CPU_VALUE}".strip()
    return True


def cpu_only(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether jax will run on the CPU, told without starting it: JAX_PLATFORMS says so, or there is
    no plug-in.
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
