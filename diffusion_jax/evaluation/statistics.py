"""Reference statistics: a split's features as mean and covariance, in a file that says what they are of.

A Frechet distance is a number only together with its reference: which extractor, which images, how many, how resized. The
file holds all of it under a hash, and is refused for anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import frechet
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.progress import progress
from diffusion_jax.provenance import atomic_path, canonical_json

BATCH, PROBE = 1024, 1000  # images read at a time; images hashed
REMEDY = "make it anew with experiments.statistics"


class Statistics(NamedTuple):
    """The moments, and what they are of: extractor, digest, resize, image_shape, data, split, data_digest, count."""

    moments: frechet.Moments
    of: dict[str, Any]


def describe(extractor: Extractor, source: Source, data: str, split: str, limit: int | None = None) -> dict[str, Any]:
    """What statistics of this split by this extractor are of: every entry must agree for two sets to be comparable."""
    count = len(source) if limit is None else min(limit, len(source))
    chosen = np.unique(np.linspace(0, count - 1, min(count, PROBE)).astype(int))
    images = source.rows(chosen)["image"]
    return {
        "extractor": extractor.name, "digest": extractor.digest, "resize": extractor.resize, "data": data, "split": split,
        "image_shape": list(images.shape[1:]), "count": count, "data_digest": hashlib.sha256(images.tobytes()).hexdigest()[:24],
    }  # fmt: skip


def compute(extractor: Extractor, source: Source, data: str, split: str, limit: int | None = None) -> Statistics:
    """Mean and covariance of a split's features (its first `limit`), read in batches, with progress."""
    of = describe(extractor, source, data, split, limit)
    return Statistics(frechet.stream(_features(extractor, source, of["count"])), of)


def _features(extractor: Extractor, source: Source, count: int) -> Iterator[np.ndarray]:
    batch = min(BATCH, count)
    with progress(count, f"{extractor.name} features") as advance:
        for start in range(0, count, batch):
            # full batches, the last one reaching back: one compiled shape
            first = min(start, count - batch)
            yield extractor.features(source.rows(np.arange(first, first + batch))["image"])[start - first :]
            advance(first + batch - start)


def save(path: str | os.PathLike, statistics: Statistics) -> None:
    """Write an .npz of count, mean, cov, the description as JSON, and the hash of them all, atomically."""
    arrays = statistics.moments._asdict() | {"of": canonical_json(statistics.of, indent=None)}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, hash=_hash(arrays))


def load(path: str | os.PathLike) -> Statistics:
    """Read what `save` wrote; UserError where it is missing, is something else, or does not match its hash."""
    try:
        with open(path, "rb") as file, np.load(file) as kept:
            arrays = dict(kept)
        intact = str(arrays.pop("hash")) == _hash(arrays)
        of = json.loads(str(arrays["of"]))
    except FileNotFoundError:
        raise UserError(f"there is no '{path}'; make it with python -m experiments.statistics --out={path}") from None
    except Exception as error:  # a damaged zip can raise nearly anything
        raise UserError(f"'{path}' holds no statistics ({type(error).__name__}); {REMEDY}") from error
    if not intact:
        raise UserError(f"'{path}' is damaged: its contents do not match their hash; {REMEDY}")
    return Statistics(frechet.Moments(int(arrays["count"]), arrays["mean"], arrays["cov"]), of)


def need(statistics: Statistics, path: str | os.PathLike, **expected: Any) -> None:
    """UserError, naming the first difference, unless the statistics are of exactly this (entries of `describe`)."""
    for key, value in expected.items():
        if statistics.of.get(key) != value:
            raise UserError(
                f"'{path}' holds statistics of another {key} ({statistics.of.get(key)}, here {value}); "
                f"make some for this one with experiments.statistics"
            )


def _hash(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("count", "mean", "cov", "of"):
        digest.update(str(arrays[name]).encode() if name == "of" else np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()
