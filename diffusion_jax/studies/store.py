"""Results that an interrupted command has finished: kept on disk, found again by their key.

Two layouts serve every command that can be resumed. Rows of one JSON file, written after each row:

    table = open_table(path, settings, rule)
    found = row(table, {"method": "ddnm"}, make)    # make() is called only if the row is missing

And one .npz file for each result that has arrays, named by the hash of what it depends on:

    path = cell_path(folder, identity)
    save_cell(path, "row", record, {"samples": x})
    found = load(path, lambda path: read_cell(path, "row", rule, arrays))

Files are written atomically and validated when they are read (`reading`): a damaged part is made
again after a warning, and a table that was made with other settings is started anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from diffusion_jax.core import files, npz, provenance, reading
from diffusion_jax.training import distributed

T = TypeVar("T")


def load(path: Path, read: Callable[[Path], T], *, fresh: bool = False) -> T | None:
    """Load what an earlier run stored at a path; None where it has to be computed.

    Args:
      path: the file.
      read: returns the content of the file, and raises UserError where it is damaged; a warning
        then says that this part is made again.
      fresh: ignore what is there.
    """
    return None if fresh else reading.kept(path, read)


def load_json(path: Path, rule: reading.Rule) -> Any | None:
    """Load a JSON file that an earlier run stored; None where it has to be made again (see `load`).

    Args:
      path: the file, which need not exist.
      rule: what the content must be.
    """
    return load(path, lambda path: reading.json_file(path, rule))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from making the result of a file while the block runs.

    They wait at this place and then find the result. On a file system without locks both make it,
    and as files are written atomically, one of two equal results stays.

    Args:
      path: the file of the result; the lock is the file `.NAME.lock` in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- rows of one JSON file
class Table(NamedTuple):
    """A table of results that all depend on the same settings, in one JSON file.

    Attributes:
      path: the JSON file.
      settings: what every row depends on.
      content: 'rows', and what else the command keeps in the file; changed in place.
      config: what the provenance of the file is the hash of.
      nested: the key of the file under which the settings stand; '' for the top level.
    """

    path: Path
    settings: dict[str, Any]
    content: dict[str, Any]
    config: Mapping[str, Any]
    nested: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, in the order in which they were made."""
        return self.content["rows"]


def open_table(
    path: Path,
    settings: Mapping[str, Any],
    rule: reading.Rule,
    *,
    config: Mapping[str, Any] | None = None,
    nested: str = "",
) -> Table:
    """The table in a file, if the file was made with the same settings; otherwise an empty one.

    Args:
      path: the JSON file.
      settings: what every row depends on.
      rule: what the whole file must hold; 'rows' is a list of objects.
      config: what the provenance of the file is the hash of; None: the settings.
      nested: the key of the file under which the settings stand; '' for the top level.
    """
    settings = files.plain(settings)
    config = settings if config is None else config
    found = load_json(path, rule) or {}
    kept = found.get(nested, {}) if nested else {key: found.get(key) for key in settings}
    if kept != settings:
        if found:
            print(f"{path} was made with other settings and is started anew", file=sys.stderr)
        found = {}
    return Table(Path(path), settings, {"rows": []} | found, config, nested)


def save(table: Table) -> None:
    """Write the table to its file, with the settings and the provenance of this run.

    The first process alone writes.

    Args:
      table: its content, settings and provenance replace the file at table.path atomically.
    """
    settings = {table.nested: table.settings} if table.nested else table.settings
    stamp = {"provenance": provenance.provenance(table.config)}
    if distributed.first():
        files.save_json(table.path, {**table.content, **settings, **stamp})


def row(
    table: Table, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """The row of a key: the one that is in the table, or else `make()`, which is added and saved.

    Args:
      table: changed in place.
      key: values that no other row of the table shares.
      make: returns the rest of the row.
    """
    for found in table.rows:
        if key.items() <= found.items():
            return found
    table.rows.append(made := files.plain({**key, **make()}))
    save(table)
    return made


# ---- one .npz file for each result
def cell_path(
    folder: Path, identity: Mapping[str, Any], *, digits: int = 20, indent: int | None = None
) -> Path:
    """The file of a result in a folder, named by the SHA-256 hash of everything that it depends on.

    Args:
      folder: the folder of the cells.
      identity: what the result depends on, as plain data.
      digits: how many hexadecimal digits of the hash make the name.
      indent: the indentation of the JSON text that is hashed; 2 finds the cells of guidance sweeps.
    """
    text = files.canonical_json(identity, indent)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:digits]}.npz"


def save_cell(
    path: Path, name: str, record: Mapping[str, Any], arrays: Mapping[str, Any | None]
) -> None:
    """Write a record and arrays to an .npz file, atomically.

    Args:
      path: the file.
      name: the name of the array that holds the record as JSON text.
      record: plain data.
      arrays: name -> array; those that are None are left out.
    """
    present = {key: value for key, value in arrays.items() if value is not None}
    npz.save(path, {name: json.dumps(files.plain(record))} | present, compressed=True)


def read_cell(
    path: Path,
    name: str,
    rule: reading.Rule,
    needed: Mapping[str, npz.ArraySpec],
    also: Callable[[str], npz.ArraySpec | None] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays that `save_cell` wrote.

    Args:
      path: the file.
      name: the name of the array that holds the record.
      rule: what the record must be.
      needed: arrays that must be there, and what each must be.
      also: as in `npz.load`: what an array of another name must be.

    Raises:
      UserError: where the file is damaged, or holds something else.
    """
    arrays = npz.load(path, {name: npz.ArraySpec("U", ()), **needed}, also)
    text = str(arrays.pop(name))
    return reading.json_text(text, f"the {name} in '{path}'", rule), arrays
