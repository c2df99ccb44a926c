"""Where a number comes from, and files that are never half-written.

Every result of the project is saved beside `provenance(config, seed)`. `atomic_path` is the one way this project's
machinery replaces a file: a reader sees the old one or the new one, and a killed writer leaves the old one in place.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from diffusion_jax import reading
from diffusion_jax.errors import UserError, printable

PACKAGES = ("diffusion_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def provenance(config: Mapping | None = None, seed: int | None = None) -> dict[str, Any]:
    """What is needed to repeat a result: code, versions, machine, command, config, seed; None where it is not known.

    Returns {'commit': hash ('-dirty' after it where tracked files differ), 'versions': {package: version, 'python':
    ...}, 'platform', 'devices': {'backend', 'kind', 'count', 'processes'}, 'cpu': {'model', 'cores'}, 'date' (UTC, ISO
    8601), 'command', 'config_hash' (see `config_hash`; None without a config), 'seed'}. Never raises.
    """
    versions = {name: _or_none(metadata.version, name) for name in PACKAGES}
    return {
        "commit": _or_none(_commit),
        "versions": versions | {"python": platform.python_version()},
        "platform": _or_none(platform.platform),
        "devices": _or_none(_devices),
        "cpu": {"model": _or_none(_cpu_model), "cores": _or_none(_usable_cores)},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": _or_none(_command),
        "config_hash": None if config is None else _or_none(config_hash, config),
        "seed": _or_none(plain, seed),
    }


def config_hash(config: Any) -> str:
    """sha256 (hex) of the canonical JSON of a config: the same for equal values, whatever the order of the keys."""
    return hashlib.sha256(canonical_json(config, indent=None).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value as plain JSON data: mappings get string keys, arrays (numpy, jax) become lists, others their text."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "to_dict"):  # ConfigDict
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else str(value)


def canonical_json(value: Any, indent: int | None = 2) -> str:
    """JSON text that depends on the values alone: sorted keys, arrays as lists, NaN as Python writes and reads it."""
    return json.dumps(plain(value), sort_keys=True, indent=indent)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Write to the path this yields; it takes the place of `path` when the block ends, and is gone if the block raises.

    Missing folders are made. The temporary name keeps the suffix, by which many writers choose their format.
    Raises UserError where the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose a folder that can be written") from error
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # such as a full disk, where the system names no file
        error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_text(path: str | os.PathLike, text: str) -> None:
    """Write text to path, atomically, in UTF-8; bytes of file names that are not UTF-8 appear escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Write `canonical_json(value)` to path, atomically."""
    save_text(path, canonical_json(value) + "\n")


def load_json(path: str | os.PathLike, rule: reading.Rule = reading.anything) -> Any:
    """Read a JSON file whose value is as the rule says (`reading`).

    Raises:
      UserError: naming the file and the place, where it is missing, broken or something else.
    """
    try:
        return reading.json_file(path, rule)
    except UserError as error:
        raise UserError(f"{error}; delete it or make it anew") from None


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]) -> str:
    """A GitHub table of the named columns (key, or key -> heading); floats to four digits; '-' where a row has none."""
    headings = columns if isinstance(columns, Mapping) else {key: key for key in columns}
    right = [any(isinstance(plain(row.get(key)), (int, float)) for row in rows) for key in headings]
    lines = [[str(heading) for heading in headings.values()], ["---:" if r else "---" for r in right]]
    lines += [[_cell(row.get(key)) for key in headings] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    value = plain(value)
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return printable(text.replace("|", "\\|").replace("\n", " "))


def _or_none(find_out: Callable, *args) -> Any:
    """What a record cannot find out it leaves empty: a run must not die of its own label."""
    try:
        return find_out(*args)
    except Exception:
        return None


def _commit() -> str:
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]  # a killed run must not leave a lock
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    git("ls-files", "--error-unmatch", here.name)  # an installed copy in somebody else's repository has no commit
    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


def _devices() -> dict[str, Any]:
    import jax

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
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _command() -> str:
    return shlex.join(sys.orig_argv)
