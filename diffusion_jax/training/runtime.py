"""What must be said to XLA before or as jax starts. Importing this file does not import jax; a main calls both functions first."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

# With this jaxlib's default, the backward pass of a convolution on a CPU takes up to three times as long. An XLA that does not know
# the flag ends the process, so it is set only for versions it was tried on.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CPU_VALUE = "-individual_convolution"
CPU_FLAG_TRIED_ON = ("0.10.2", "0.11.2", "0.12.0")


def set_cpu_flags(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Append the fast-convolution flag to XLA_FLAGS, before jax starts; only where jax will use the CPU, by a jaxlib it was tried on.

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
    """Whether jax will run on the CPU, as far as can be told without starting it: told so, or no accelerator plug-in installed."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    plugins = [point.name for point in metadata.entry_points(group="jax_plugins")]
    return not plugins and not any(_installed(name) for name in ("libtpu", "libtpu-nightly"))


def enable_compilation_cache(directory: str | os.PathLike | None = None) -> Path:
    """Keep compiled programs on disk between runs: in `directory`, else $JAX_COMPILATION_CACHE_DIR, else ~/.cache/diffusion_jax/xla."""
    import jax

    chosen = directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "diffusion_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return Path(chosen)


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
