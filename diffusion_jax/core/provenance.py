"""Where a number comes from: the record that is saved with every result."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.core import files

PACKAGES = ("diffusion_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def provenance(config: Mapping | None = None, seed: int | None = None) -> dict[str, Any]:
    """Collect what is needed to repeat a result. It never raises.

    Args:
      config: the config, whose hash is recorded; None if there is none.
      seed: the seed of the result; None if there is none.

    Returns:
      A dict of 'commit' (a hash, with '-dirty' after it where tracked files differ), 'versions' (of
      Python and the packages), 'platform', 'devices' ('backend', 'kind', 'count', 'processes'),
      'cpu' ('model', 'cores'), 'date' (UTC, ISO 8601), 'command', 'config_hash' and 'seed'. What is
      not known is None.
    """
    versions = {name: _or_none(metadata.version, name) for name in PACKAGES}
    return {
        "commit": _or_none(_commit),
        "versions": versions | {"python": platform.python_version()},
        "platform": _or_none(platform.platform),
        "devices": _or_none(_devices),
        "cpu": {"model": _or_none(_cpu_model), "cores": _or_none(_usable_cores)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _or_none(_command),
        "config_hash": None if config is None else _or_none(config_hash, config),
        "seed": _or_none(files.plain, seed),
    }


def config_hash(config: Any) -> str:
    """Return a hash of a config that is the same for equal values.

    Args:
      config: what `files.plain` converts, such as a ConfigDict or a dict.

    Returns:
      The sha256 of its canonical JSON, 64 hexadecimal digits.
    """
    return hashlib.sha256(files.canonical_json(config, indent=None).encode()).hexdigest()


def _or_none(find_out: Callable, *args: Any) -> Any:
    """Return None for what cannot be found out: a run must not fail for its own record."""
    try:
        return find_out(*args)
    except Exception as error:  # whatever it is: a missing git, no network, an unknown field
        message = "the provenance has no %s"
        logging.getLogger(__name__).debug(message, find_out.__name__, exc_info=error)
        return None


def _commit() -> str:
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        # without locks, as a killed run must not leave one
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    # an installed copy in another repository has no commit
    git("ls-files", "--error-unmatch", here.name)
    return git("rev-parse", "HEAD") + (
        "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def _devices() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
    }


def _cpu_model() -> str | None:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _command() -> str:
    return shlex.join(sys.orig_argv)
