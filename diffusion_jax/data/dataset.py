"""What a loaded data set is: two sources of examples, and what they hold."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_jax.data import latents
from diffusion_jax.data.normalization import ConditionUnits, Normalization
from diffusion_jax.data.sources import Source


class Dataset(NamedTuple):
    """Two disjoint sources of examples and what they hold.

    Attributes:
      name: config.data.name.
      train: the examples to train on.
      test: the examples that are held out.
      image_shape: (N_1, ..., N_d, C), such as (H, W, C); (2,) for the 2-D toys.
      num_classes: the number of classes; 0 without labels.
      class_names: the names of the classes by label.
      captions: every distinct caption, if captions were requested; see captions.py.
      encoded: what made the examples, if they are latents.
      rule: how the examples were split, in words.
      normalization: of arrays that are neither images of 8 bits nor latents.
      units: of the arrays that condition a model.
    """

    name: str
    train: Source
    test: Source
    image_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    captions: tuple[str, ...] = ()
    encoded: latents.Encoded | None = None
    rule: str = ""
    normalization: Normalization | None = None
    units: ConditionUnits = ConditionUnits()
