"""Captioned examples and small models of captions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

TINY = dict(
    width=8, multipliers=(1,), blocks=1, attention=(4,), head_width=None, attention_impl="plain"
)


def text_condition(lengths=(3, 1), seed=2) -> dict:
    mask = jnp.arange(4) < jnp.array(lengths)[:, None]
    random = np.random.default_rng(seed)
    arrays = {"tokens": random.standard_normal((2, 4, 6)), "pooled": random.standard_normal((2, 6))}
    return {name: jnp.asarray(a, jnp.float16) for name, a in arrays.items()} | {"mask": mask}


def read(batch) -> list[str]:
    return ["".join(chr(c - 1) for c in row if c) for row in batch["bytes"]]
