"""Reference statistics: mean and covariance of a split's features, with their description.

A Fréchet distance is meaningful only together with its reference: which extractor, which images,
how many, how resized. The file holds all of it under a hash, and is refused for anything else.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import canonical_json
from diffusion_jax.core.progress import progress
from diffusion_jax.data.padding import padded_batches
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import frechet
from diffusion_jax.evaluation.features import Extractor

BATCH, PROBE = 256, 1000  # images read at a time; images hashed
REMEDY = "make it again with experiments.statistics"

ARRAYS = {
    "count": npz.ArraySpec("iu", ()),
    "mean": npz.ArraySpec("f", (None,)),
    "cov": npz.ArraySpec("f", (None, None)),
    "of": npz.ArraySpec("U", ()),
    "hash": npz.ArraySpec("U", ()),
}

OF = reading.record(
    {
        "extractor": reading.text(1),
        "digest": reading.text(),
        "resize": reading.anything,
        "data": reading.text(),
        "split": reading.text(),
        "image_shape": reading.items(reading.integer(1, 2**20)),
        "count": reading.integer(1),
        "data_digest": reading.text(),
    }
)


class Statistics(NamedTuple):
    """The moments of a split's features, with their description.

    Attributes:
      moments: the moments.
      of: their description; see `describe`.
    """

    moments: frechet.Moments
    of: dict[str, Any]


def describe(
    extractor: Extractor, source: Source, data: str, split: str, limit: int | None = None
) -> dict[str, Any]:
    """Describe statistics: two sets are comparable if every entry agrees.

    Args:
      extractor: the extractor.
      source: the split.
      data: the name of the data set.
      split: the name of the split.
      limit: the number of images, None for all.

    Returns:
      {'extractor', 'digest', 'resize', 'data', 'split', 'image_shape', 'count', 'data_digest'}.
    """
    count = len(source) if limit is None else min(limit, len(source))
    chosen = np.unique(np.linspace(0, count - 1, min(count, PROBE)).astype(int))
    images = source.rows(chosen)["image"]
    return {
        "extractor": extractor.name,
        "digest": extractor.digest,
        "resize": extractor.resize,
        "data": data,
        "split": split,
        "image_shape": list(images.shape[1:]),
        "count": count,
        "data_digest": hashlib.sha256(images.tobytes()).hexdigest()[:24],
    }


def compute(
    extractor: Extractor,
    source: Source,
    data: str,
    split: str,
    limit: int | None = None,
    *,
    partial: str | os.PathLike | None = None,
    save_every: float = 60.0,
) -> Statistics:
    """Compute mean and covariance of the features of a split, in batches and with progress.

    Args:
      extractor: the extractor.
      source: the split.
      data: the name of the data set.
      split: the name of the split.
      limit: the number of images, None for all.
      partial: a file that holds the moments so far; running the same pass again resumes from it.
      save_every: the seconds after which it is written.
    """
    of, saved = describe(extractor, source, data, split, limit), time.monotonic()
    count, moments = of["count"], _so_far(partial, of)
    batch = min(BATCH, count)
    first = moments.count if moments else 0
    with progress(count - first, f"{extractor.name} features") as advance:
        for _, index, real in padded_batches(count - first, batch):
            images = source.rows(first + index)["image"]
            fresh = frechet.moments(extractor.features(images)[:real])
            moments = frechet.merge(moments, fresh) if moments else fresh
            advance(fresh.count)
            if partial is not None and time.monotonic() - saved > save_every:
                save(partial, Statistics(moments, of))
                saved = time.monotonic()
    if partial is not None:
        Path(partial).unlink(missing_ok=True)
    return Statistics(moments, of)


def _so_far(partial: str | os.PathLike | None, of: dict[str, Any]) -> frechet.Moments | None:
    """Read what an interrupted pass over the same images left, if anything."""
    kept = None if partial is None else reading.kept(partial, load)
    return kept.moments if kept is not None and kept.of == of else None


def save(path: str | os.PathLike, statistics: Statistics) -> None:
    """Write statistics to an .npz file under a hash, atomically.

    Args:
      path: the file.
      statistics: the statistics.
    """
    arrays = statistics.moments._asdict() | {"of": canonical_json(statistics.of, indent=None)}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    npz.save(path, arrays | {"hash": _hash(arrays)})


def load(path: str | os.PathLike) -> Statistics:
    """Read what `save` wrote.

    Args:
      path: the .npz file of a split's statistics.

    Raises:
      UserError: where the file is missing or damaged, does not match its hash, or holds no
        covariance.
    """
    if not os.path.lexists(path):
        raise UserError(
            f"there is no '{path}'; make it with python -m experiments.statistics --out={path}"
        )
    try:
        arrays = npz.load(path, ARRAYS)
        intact = str(arrays["hash"]) == _hash(arrays)
        of = reading.json_text(
            str(arrays["of"]), f"the description in '{path}'", OF if intact else reading.anything
        )
    except UserError as error:
        raise UserError(f"'{path}' holds no statistics ({error}); {REMEDY}") from error
    if not intact:
        raise UserError(f"'{path}' is damaged: its contents do not match their hash; {REMEDY}")
    moments = frechet.Moments(int(arrays["count"]), arrays["mean"], arrays["cov"])
    if (
        moments.count < 1
        or arrays["cov"].shape != 2 * arrays["mean"].shape
        or not _is_covariance(moments.cov)
    ):
        raise UserError(f"'{path}' is damaged: its cov is not a covariance for its mean; {REMEDY}")
    return Statistics(moments, of)


def _is_covariance(cov: np.ndarray) -> bool:
    """Whether a finite matrix is symmetric and, up to rounding, positive semidefinite."""
    size = float(np.abs(np.diagonal(cov)).max(initial=0.0))
    if np.abs(cov - cov.T).max(initial=0.0) > 1e-5 * size:
        return False
    try:
        np.linalg.cholesky(cov.astype(np.float64) + (1e-6 * size + 1e-300) * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        return False
    return True


def need(statistics: Statistics, path: str | os.PathLike, **expected: Any) -> None:
    """Check that statistics have a description.

    Args:
      statistics: the statistics.
      path: their file, for messages.
      **expected: entries of `describe`.

    Raises:
      UserError: naming the first entry that differs.
    """
    if statistics.moments.count != statistics.of.get("count"):
        raise UserError(
            f"'{path}' is unfinished; run the same experiments.statistics again to resume it"
        )
    for key, value in expected.items():
        if statistics.of.get(key) != value:
            raise UserError(
                f"'{path}' holds statistics of another {key} ({statistics.of.get(key)}, here "
                f"{value}); make those of this one with experiments.statistics"
            )


def _hash(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("count", "mean", "cov", "of"):
        digest.update(
            str(arrays[name]).encode() if name == "of" else np.ascontiguousarray(arrays[name])
        )
    return digest.hexdigest()
