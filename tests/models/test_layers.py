"""The building blocks of networks: attention, changes of resolution, embeddings and blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models import embeddings, layers, normalization
from tests.models.networks import normal


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_changes_of_resolution_keep_blocks_together_and_are_undone(axes):
    """Along one, two and three axes: packing blocks, and repeating each pixel."""
    sizes = (4, 6, 8)[:axes]
    x = normal(0, (2, *sizes, 3))
    packed = layers.space_to_depth(x, 2)
    np.testing.assert_array_equal(layers.depth_to_space(packed, 2), x)
    last, block = tuple(n // 2 - 1 for n in sizes), tuple(slice(n - 2, n) for n in sizes)
    np.testing.assert_array_equal(packed[(1, *last)].reshape(*(2,) * axes, 3), x[(1, *block)])
    big = np.asarray(layers.nearest(packed))
    assert big.shape[1:-1] == sizes
    np.testing.assert_allclose(layers.average_pool(big), packed, rtol=1e-6)
    pixel = packed[(1, *last)][1]
    np.testing.assert_array_equal(big[(1, *block, 1)], np.full((2,) * axes, pixel))


@pytest.mark.parametrize("channels", [1, 3, 8, 32, 48, 96, 128, 144, 256, 384, 512])
def test_groups_divide(channels):
    g = normalization.groups(channels)
    assert channels % g == 0 and 1 <= g <= 32
    assert g == 32 if channels % 128 == 0 else channels // g >= min(4, channels)


def test_sinusoids_are_ddpm_s():
    """Sines first, frequencies from 1 to exactly 1/10000 (DDPM divides by n - 1)."""
    features = embeddings.sinusoidal(jnp.array([0.0, 500.0]), 8)
    np.testing.assert_array_equal(features[0], [0, 0, 0, 0, 1, 1, 1, 1])
    frequency = np.array([1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    np.testing.assert_allclose(
        features[1], [*np.sin(500 * frequency), *np.cos(500 * frequency)], atol=1e-4
    )


def test_fourier_features_are_fixed_and_on_the_circle():
    features = np.asarray(embeddings.fourier(jnp.array([-1.0, 0.3]), 16))
    np.testing.assert_allclose(features[:, :8] ** 2 + features[:, 8:] ** 2, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(features, embeddings.fourier(jnp.array([-1.0, 0.3]), 16))


def test_the_waves_of_an_input_tell_levels_apart():
    """2^n pi x of VDM: one level of 8 bits is most of a period for n = 8, against 1/255 of x."""
    x = jnp.asarray([[0.25], [0.25 + 2 / 255]])
    waves = embeddings.input_waves(x, (7, 8))
    exact = [f(2**n * np.pi * np.float64(x)) for f in (np.sin, np.cos) for n in (7, 8)]
    np.testing.assert_allclose(waves, exact, atol=1e-4)
    assert max(np.abs(wave[1] - wave[0]).max() for wave in waves) > 0.3


def test_the_noise_features_are_those_asked_for():
    """The two kinds differ with random parameters, and a scalar noise level is broadcast."""
    condition = embeddings.ConditionEmbedding(features=8, width=8)
    params = jax.jit(lambda: condition.init(jax.random.key(0), 0.0, {}, 1))()

    def at(kind, c):
        return np.asarray(condition.clone(noise_features=kind).apply(params, c, {}, 2))

    c = jnp.array([0.3, 0.3])
    assert np.abs(at("fourier", c) - at("sinusoidal", c)).max() > 1e-2
    np.testing.assert_array_equal(at("fourier", jnp.array(0.3)), at("fourier", c))


def test_check_labels():
    embeddings.check_labels(np.array([0, 9, 10]), 10)
    for bad in (-1, 11):
        with pytest.raises(UserError, match=f"label {bad} is out of range.*0 to 9"):
            embeddings.check_labels([0, bad], 10)


def test_skip_scale_scales_the_sum():
    """A block whose second convolution is zero multiplies its shortcut by skip_scale."""
    x, embedding = normal(0, (1, 4, 4, 8)), np.ones((1, 16), np.float32)
    block = layers.ResidualBlock(8, skip_scale=0.5)
    out, _ = jax.jit(
        lambda x, embedding: block.init_with_output(jax.random.key(1), x, embedding, False)
    )(x, embedding)
    np.testing.assert_allclose(out, 0.5 * x, rtol=1e-6)


def test_double_normalization_is_that_of_the_paper():
    """norm(h) pnorm(s) + pnorm(b), in numpy; the size of s and b is of no consequence."""
    block = layers.ResidualBlock(8, scale_shift=False, double_norm=True)
    x, embedding = normal(0, (2, 4, 4, 8)), normal(1, (2, 6))
    params = block.init(jax.random.key(0), x, embedding)["params"]
    params["conv_2"]["kernel"] = normal(2, params["conv_2"]["kernel"].shape)
    params["norm_2"] = {"scale": normal(3, (8,)), "bias": normal(4, (8,))}

    def run(params):
        out, seen = block.apply({"params": params}, x, embedding, capture_intermediates=True)
        return out, {
            name: np.asarray(own["__call__"][0])
            for name, own in seen["intermediates"].items()
            if name != "__call__"
        }

    out, seen = run(params)
    h = seen["conv_1"].reshape(2, 16, 2, 4)  # two groups of four channels
    h = (h - h.mean((1, 3), keepdims=True)) / np.sqrt(h.var((1, 3), keepdims=True) + 1e-6)
    h = h.reshape(2, 4, 4, 8) * params["norm_2"]["scale"] + params["norm_2"]["bias"]
    s, b = (
        own / np.sqrt(np.square(own).mean(1, keepdims=True))
        for own in np.split(seen["embedding"], 2, axis=1)
    )
    expected = h * s[:, None, None] + b[:, None, None]
    expected = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(seen["norm_2"], expected, rtol=1e-4, atol=1e-5)
    larger = params | {"embedding": jax.tree.map(lambda leaf: 7 * leaf, params["embedding"])}
    np.testing.assert_allclose(run(larger)[0], out, rtol=1e-4, atol=1e-5)
