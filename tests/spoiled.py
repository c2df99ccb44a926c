"""Files as they should be, and every way in which the tests spoil them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRID = {"logsnr": {"3": [-9.0, 0.0, 5.0]}}


PLACED = {
    "logsnr": {"3": [-9.0, 0.0, 5.0]},
    "exact": {"what": "a fine solve", "solved": 2, "frechet": 1.0},
    "sampler": "x",
    "starts": 2,
    "num": 3,
    "rows": [
        {"sampler": name, "nfe": 3, "error": 0.1, "shift": 0.2, "frechet": 0.5}
        for name in ("karras", "placed")
    ],
}


DATA = {
    "name": "digits",
    "image_shape": [8, 8, 1],
    "num_classes": 2,
    "class_names": ["a", "b"],
    "encoded": {
        "autoencoder": "ab",
        "image_shape": [8, 8, 1],
        "data": "digits",
        "num_classes": 2,
        "class_names": ["a", "b"],
        "shift": [0.0],
        "scale": [1.0],
    },
}


REPORT = {
    "step": 3,
    "what": "loss",
    "command": "c",
    "losses": [1.0, float("nan")],
    "examples": [1],
    "log_snr": [0.0, 1.0],
    "t": [0.1, 0.2],
    "layers": ["a"],
    "norms": {"gradient": [1.0]},
    "start": {"checkpoint": None, "key": [0, 1], "shift": 0},
}


CARD = {
    "topology": "cpu:1",
    "chip": "cpu",
    "model": "mlp.MLP",
    "remat": "none",
    "devices": 1,
    "mesh": {"data": 1},
    "shape": [2],
    "batch_size": 8,
    "parameters": 100,
    "state_bytes": 800,
    "state_bytes_per_device": 800,
    "accumulate": 1,
    "steps_per_call": 1,
    "flops": 1e6,
    "model_flops": 1e6,
    "trace_seconds": 0.1,
    "fits": None,
    "hbm": None,
    "refused": None,
    "compile_seconds": 1.0,
    "memory": {"arguments": 1.0, "temporaries": 1.0, "output": 1.0, "code": 1.0, "total": 4.0},
    "traffic": 1e3,
    "collectives": {"all-reduce": {"count": 1.0, "bytes": 1e3}},
    "roofline": None,
}


SETTINGS = {"sampler": "x"}


WRONG = (None, [], {}, "\x1b[2J", -1, 10**400, float("nan"), True, [None], {"x": 1})


def variations(value: Any) -> Iterator[Any]:
    """The value with one of its parts, at any depth, missing or replaced by something else."""
    yield from WRONG
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else []
    )
    for key in keys:
        less = copy.deepcopy(value)
        del less[key]
        yield less
        for part in variations(value[key]):
            other = copy.copy(value)
            other[key] = part
            yield other


def spoiled(path: Path) -> Iterator[None]:
    """The file at `path`, spoiled in one way after the other."""
    whole = path.read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"\x00" * 100,
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"rows": 3}',
        "ü".encode("utf-16"),
    ):
        path.write_bytes(content)
        yield
    path.unlink()
    os.mkfifo(path)
    yield
    path.unlink()
    path.write_bytes(whole)
