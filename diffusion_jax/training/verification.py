"""Verification of checkpoints: what the item 'meta' says of every leaf, and the comparison with it.

'meta' is JSON: the shape, dtype and sha256 of every leaf, the caller's `extra`, and a sha256 of all
this. Orbax alone restores a flipped byte, or another dtype, without an error; here every leaf is
compared with its digest before anyone sees it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.core import reading, staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import distributed, storage
from diffusion_jax.training.sharding import fetch

# The training loop and its rollbacks resume from what is saved with the state ('extra').
_ROLLBACK = reading.record(
    {
        "to": reading.optional(reading.integer()),
        "tries": reading.integer(),
        "shift": reading.integer(),
    }
)

_LEAF = reading.record(
    {
        "shape": reading.items(reading.integer(0, 2**40), most=32),
        "dtype": reading.text(1, 100),
        "sha256": reading.text(64, 64),
    }
)

_BODY = reading.record(
    {
        "step": reading.integer(),
        "leaves": reading.table(_LEAF),
        "extra": reading.record(
            {},
            {
                "rollback": _ROLLBACK,
                "in_a_row": reading.integer(),
                "tally": reading.optional(reading.table()),
            },
        ),
    }
)


class DamagedCheckpoint(Exception):
    """A checkpoint cannot be trusted; the message states the reason."""


def make_meta(step: int, described: Mapping[str, dict], arrays: dict, extra: dict) -> dict:
    """The item 'meta' of a checkpoint.

    Args:
      step: the step of the state.
      described: the shape and dtype of every leaf, by path (`describe`).
      arrays: the leaves as they are stored (`stored_arrays`).
      extra: JSON data of the caller.
    """
    leaves = {
        path: described[path] | {"sha256": digest} for path, digest in _digests(arrays).items()
    }
    body = {"step": step, "leaves": leaves, "extra": extra}
    return {"body": body, "sha256": _text_digest(body)}


def read_body(folder: Path) -> dict[str, Any]:
    """Read the description 'meta': {'step', 'leaves': {path: shape, dtype, sha256}, 'extra'}.

    The whole checkpoint is fetched first where the workdir is in an object store.

    Args:
      folder: the folder of the checkpoint, DIR/STEP.

    Raises:
      DamagedCheckpoint: if it cannot be read, or is not what was written.
    """
    staging.fetch(folder)
    meta = _attempt(storage.read_meta, folder)
    if not isinstance(meta, dict) or meta.get("sha256") != _text_digest(meta.get("body")):
        raise DamagedCheckpoint("its description does not match its digest")
    try:
        _BODY(meta["body"], "")
    except reading.Mismatch as mismatch:
        raise DamagedCheckpoint(f"its description is invalid: {mismatch}") from None
    return meta["body"]


def read_leaves(folder: Path, stored: Mapping[str, dict], wanted: dict[str, Any]) -> dict[str, Any]:
    """Leaves of a checkpoint by path, each compared with its digest.

    Args:
      folder: the folder of the checkpoint.
      stored: what 'meta' says of every leaf.
      wanted: the leaves to read, as arrays or shapes; those with a sharding are placed by it.

    Raises:
      DamagedCheckpoint: if they cannot be read, or a leaf does not match its digest.
    """
    shapes = {path: _stored_shape(leaf) for path, leaf in wanted.items()}
    found = _attempt(storage.read_state, folder, shapes)
    for path, digest in _digests(found).items():
        if digest != stored[path]["sha256"]:
            raise DamagedCheckpoint(f"{path} does not match its digest")
    return {path: _as_key(found[path], leaf) for path, leaf in wanted.items()}


def check_model(folder: Path, stored: Mapping[str, dict], wanted: dict[str, Any]) -> None:
    """Compare the paths, shapes and dtypes of the leaves of a checkpoint with those of a model.

    Args:
      folder: the folder of the checkpoint, for messages.
      stored: {path: {'shape', 'dtype', ...}} of its leaves, from the description.
      wanted: the leaves of the model by their paths, arrays or ShapeDtypeStructs.

    Raises:
      UserError: naming the first leaf that differs.
    """
    have = {path: (tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in stored.items()}
    want = {path: (tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in describe(wanted).items()}

    def text(leaf: tuple | None) -> str:
        return "missing" if leaf is None else f"{leaf[1]}{list(leaf[0])}"

    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            raise UserError(
                f"checkpoint '{folder}' is of another model: {path} is {text(have.get(path))} in "
                f"the checkpoint and {text(want.get(path))} in this config; use the config of that "
                "run, or another folder"
            )


def describe(leaves: dict[str, Any]) -> dict[str, dict]:
    """Return the shape and dtype of every leaf as JSON data.

    Args:
      leaves: arrays or ShapeDtypeStructs by their paths.
    """
    return {path: {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in leaves.items()}


def shape_of(described: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a leaf from its description.

    Args:
      described: what `describe` returns for the leaf.
    """
    return jax.ShapeDtypeStruct(tuple(described["shape"]), np.dtype(described["dtype"]))


def stored_arrays(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves as Orbax stores them: typed keys become their words.

    The dtype in 'meta' says of which kind a key is.

    Args:
      leaves: arrays by their paths.
    """
    return {path: jax.random.key_data(x) if _is_key(x) else x for path, x in leaves.items()}


def _attempt(read: Any, folder: Path, *arguments: Any) -> Any:
    """Call read(folder, *arguments); an error becomes DamagedCheckpoint in all processes."""
    try:
        found = read(folder, *arguments)
    except Exception as error:  # Orbax, tensorstore and json raise a dozen types for a broken file
        distributed.anywhere(True)  # then all processes try the same other checkpoint
        line = (str(error).strip() or "no message").splitlines()[0]
        raise DamagedCheckpoint(f"{type(error).__name__}: {line[:120]}") from error
    if distributed.anywhere(False):
        raise DamagedCheckpoint("another process could not read it")
    return found


def _digests(leaves: dict[str, Any]) -> dict[str, str]:
    """The sha256 of the bytes of each leaf.

    hashlib releases the interpreter's lock, so threads help. The leaves are fetched one after the
    other, in this thread, because processes that gather shards must do so in the same order.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(leaves, pool.map(_digest, map(fetch, leaves.values())), strict=True))


def _digest(leaf: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()


def _text_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored_shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and sharding under which a leaf is stored."""
    shape = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=getattr(leaf, "sharding", None))


def _as_key(value: Any, leaf: Any) -> Any:
    """A stored value, its words turned back into a typed key of the kind and place of `leaf`."""
    if not _is_key(leaf):
        return value
    kind = []
    jax.eval_shape(lambda key: kind.append(jax.random.key_impl(key)), leaf)
    key = jax.random.wrap_key_data(value, impl=kind[0])
    return key if getattr(leaf, "sharding", None) is None else jax.device_put(key, leaf.sharding)
