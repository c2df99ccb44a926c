"""Where a number comes from, and files that are never half-written.

Every result of the project is saved beside `provenance(config, seed)`. `atomic_path` is the one way
this project's machinery replaces a file: a reader sees the old one or the new one, and a killed
writer leaves the old one in place.
"""

from __future__ import annotations

import datetime
import hashlib
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

from diffusion_jax import files

PACKAGES = ("diffusion_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def provenance(config: Mapping | None = None, seed: int | None = None) -> dict[str, Any]:
    """What is needed to repeat a result: code, versions, machine, command, config, seed; None where
    it is not known.

    Returns {'commit': hash ('-dirty' after it where tracked files differ), 'versions': {package:
    version, 'python': ...}, 'platform', 'devices': {'backend', 'kind', 'count', 'processes'},
    'cpu': {'model', 'cores'}, 'date' (UTC, ISO 8601), 'command', 'config_hash' (see `config_hash`;
    None without a config), 'seed'}. Never raises.
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
    """sha256 (hex) of the canonical JSON of a config: the same for equal values, whatever the order
    of the keys.
    """
    return hashlib.sha256(files.canonical_json(config, indent=None).encode()).hexdigest()


def _or_none(find_out: Callable, *args) -> Any:
    """What a record cannot find out it leaves empty: a run must not die of its own label."""
    try:
        return find_out(*args)
    except Exception:
        return None


def _commit() -> str:
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = [
            "git",
            "--no-optional-locks",
            "-C",
            str(here.parent),
            *arguments,
        ]  # a killed run must not leave a lock
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    git(
        "ls-files", "--error-unmatch", here.name
    )  # an installed copy in somebody else's repository has no commit
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
