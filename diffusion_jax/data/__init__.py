"""Data: any set of images as batches that are a pure function of (seed, step).

`load` names the set, `batches` serves it.
"""

from __future__ import annotations

from diffusion_jax.data.dataset import Dataset
from diffusion_jax.data.loading import load
from diffusion_jax.data.pipeline import arrays, batches, prefetch, sequential
from diffusion_jax.data.sources import Relabeled

__all__ = ["Dataset", "Relabeled", "arrays", "batches", "load", "prefetch", "sequential"]
