"""Dropout against published words of its random numbers, and by its law."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.dropout import Dropout, kept, philox

ROOT = Path(__file__).parents[2]
KEY = jax.random.key(0)
# (counter, counter, key) -> first word, of the known answers of Random123 for philox2x32, 7 rounds
KNOWN = {
    (0x00000000, 0x00000000, 0x00000000): 0x257A3673,
    (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF): 0xAB302C4D,
    (0x243F6A88, 0x85A308D3, 0x13198A2E): 0xBEDBBE6B,
}


def test_words_are_those_of_the_authors_of_philox():
    for (a, b, k), expected in KNOWN.items():
        word = philox(jnp.uint32([k, 0]), jnp.uint32([a]), jnp.uint32([b]))
        assert int(word[0]) == expected


@pytest.mark.parametrize("rate", [0.1, 0.13, 0.5])
def test_elements_are_dropped_at_the_rate_and_independently(rate):
    """Within five standard errors: the mean, and the products of neighbors and of examples."""
    keep = np.asarray(kept(KEY, (64, 8, 8, 31), round(rate * 2**16)))
    assert keep.shape == (64, 8, 8, 31)
    centred = keep.reshape(64, -1) - (1 - rate)
    unit = centred / np.sqrt(rate * (1 - rate))
    for sample in (
        unit,
        unit[:, 1:] * unit[:, :-1],
        unit[1:] * unit[:-1],
        unit[:, 15:] * unit[:, :-15],
    ):
        assert abs(sample.mean()) < 5 / np.sqrt(sample.size)


def test_the_mask_of_an_example_does_not_depend_on_the_others():
    whole, part = (kept(KEY, (n, 4, 6), 20_000) for n in (5, 3))
    np.testing.assert_array_equal(whole[:3], part)
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole, kept(jax.random.key(1), (5, 4, 6), 20_000))


DIVIDED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from diffusion_jax.models.dropout import kept

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
x = jax.device_put(jnp.ones((4, 6)), rows)
mask = jax.jit(lambda x: x * kept(jax.random.key(0), x.shape, 20_000), out_shardings=rows)(x)
print(mask.astype(int).ravel().tolist())
"""


def test_a_mask_is_divided_among_devices():
    """XLA must be able to divide its program, which depends on the operations in it."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    env["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-c", DIVIDED]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = np.asarray(kept(KEY, (4, 6), 20_000)).astype(int).ravel().tolist()
    assert done.stdout.strip() == str(expected)


def test_kept_elements_are_divided_by_their_probability():
    x = jnp.arange(1.0, 65.0).reshape(8, 8)
    y = Dropout(0.25).apply({}, x, True, rngs={"dropout": KEY})
    assert 0 < np.sum(y == 0) < 32
    np.testing.assert_allclose(y[y != 0], x[y != 0] * 4 / 3, rtol=1e-6)
    half = Dropout(0.25).apply({}, x.astype(jnp.bfloat16), True, rngs={"dropout": KEY})
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, True), x)
