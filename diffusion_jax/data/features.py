"""Features of a frozen encoder for each training example, from a file.

The file is an .npy array (N, T, D), floats of 16 or 32 bits: for each of the N examples of the
training split, in its order, T vectors of D features, such as those of DINOv2's patches. It is
mapped into memory, so it may be larger than that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.captions import CachedTable, CaptionedSource
from diffusion_jax.data.sources import Example, Source, labels_of


class FeaturedSource:
    """A source whose examples also have 'features', (T, D).

    Args:
      source: the examples.
      features: (N, T, D), by the number of the example.
    """

    def __init__(self, source: Source, features: CachedTable) -> None:
        self.source, self.features = source, features

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where they are not known."""
        return labels_of(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        return self.source[i] | {"features": np.asarray(self.features[i])}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked.

        Args:
          indices: (K,), in any order and with repetitions.
        """
        return self.source.rows(indices) | {"features": np.asarray(self.features[indices])}


def with_features(source: Source, path: str, width: int) -> Source:
    """Add the features of a file to the examples of a training split.

    Args:
      source: the split.
      path: the .npy file.
      width: D, the features of a vector.

    Raises:
      UserError: for a file of other shape, or of other numbers than floats.
    """
    shape, dtype = npz.described(path)
    if len(shape) != 3 or shape[0] != len(source) or shape[2] != width or dtype.kind != "f":
        raise UserError(
            f"config.repa.features={path} is {dtype}{list(shape)}; it must be floats of the shape "
            f"[{len(source)}, tokens, {width}]: the training examples in their order, and "
            "config.model.aligned features"
        )
    table = CachedTable(Path(path))
    if isinstance(source, CaptionedSource):
        return CaptionedSource(FeaturedSource(source.source, table), source.tables)
    return FeaturedSource(source, table)
