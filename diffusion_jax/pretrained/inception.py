"""The InceptionV3 of FID (Szegedy et al. 2016; Heusel et al. 2017), as a plain function.

It is the TensorFlow graph of 2015-12-05 that published FID numbers refer to, not torchvision's
network: convolutions without bias, batch norm without scale (eps 1e-3), average pools that leave
the padding out, a max pool in the last block's pool branch, and the legacy bilinear resize to
299x299 of TensorFlow 1. Features are the 2048 means of the last 8x8 map.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array

SIZE, WIDTH = 299, 2048
SPATIAL = 7  # channels of the spatial features
RESIZE = "299, bilinear, TensorFlow 1 (source = target x in / out, no antialiasing)"
EPS = 1e-3
Params = dict[str, Array]  # by the names of the TorchScript file; kernels (H, W, in, out)
Conv = Callable[..., Array]  # (name, x, stride=1, padding="SAME")


def convert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the tensors of the TorchScript file: kernels (out, in, H, W) -> (H, W, in, out).

    Args:
      tensors: {name: array} of the file, whose names may begin with 'net.layers.'.
    """
    tensors = {name.removeprefix("net.layers."): value for name, value in tensors.items()}
    return {
        name: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        for name, value in tensors.items()
    }


@jax.jit
def forward(images: Array, params: Params) -> tuple[Array, None]:
    """Compute the features of images of any size.

    Args:
      images: uint8 (B, H, W, 3).
      params: the parameters, as `convert` returns them.

    Returns:
      (features (B, 2048) in float32, None): there are no logits.
    """
    return network(resize(images.astype(jnp.float32)) / 128 - 1, params), None


@jax.jit
def spatial(images: Array, params: Params) -> tuple[Array, None]:
    """Compute the spatial features of images, of which the Fréchet distance is sFID.

    They are the first 7 channels of the 1x1 branch of 'mixed_6', after its ReLU, at each of 17 x 17
    positions (Nash et al. 2021, as Dhariwal & Nichol 2021 compute them).

    Args:
      images: uint8 (B, H, W, 3).
      params: the parameters, as `convert` returns them.

    Returns:
      (features (B, 2023) in float32, None): there are no logits.
    """
    x = _middle(resize(images.astype(jnp.float32)) / 128 - 1, params, blocks=2)
    x = _conv(params, "mixed_6.conv", x, 1, "SAME")[..., :SPATIAL]
    return x.reshape(len(x), -1), None


def resize(x: Array) -> Array:
    """Resize images to 299 x 299 as tf.compat.v1.image.resize_bilinear does.

    Target pixel i reads source position i H / 299, not that of its center, and larger images are
    not smoothed.

    Args:
      x: (B, H, W, C), of any range of values.

    Returns:
      (B, 299, 299, C).
    """
    rows, columns = (_legacy_bilinear(size) for size in x.shape[1:3])
    return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def _legacy_bilinear(size: int) -> np.ndarray:
    """Return the weights (299, size) of the source pixels in each target pixel."""
    position = np.arange(SIZE) * (size / SIZE)
    low = np.floor(position).astype(int)
    high, part = np.minimum(low + 1, size - 1), position - low
    weights = np.zeros((SIZE, size), np.float32)
    np.add.at(weights, (np.arange(SIZE), low), 1 - part)
    np.add.at(weights, (np.arange(SIZE), high), part)
    return weights


def network(x: Array, params: Params) -> Array:
    """Compute the features of images of the network's own size.

    Args:
      x: (B, 299, 299, 3) in [-1, 1).
      params: the parameters, as `convert` returns them.

    Returns:
      (B, 2048).
    """
    conv = _convolution(params)
    x = _middle(x, params, blocks=4)
    x = _reduction(conv, "mixed_8", x, first=None, towers=(2, 4))
    x = _wide(conv, "mixed_9", x, _average_pool)
    x = _wide(conv, "mixed_10", x, lambda x: _max_pool(x, 1))
    return jnp.mean(x, (1, 2))


def _convolution(params: Params) -> Conv:
    def conv(name: str, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
        return _conv(params, name, x, stride, padding)

    return conv


def _middle(x: Array, params: Params, blocks: int) -> Array:
    """Run the network up to the first `blocks` of its four 17x17 blocks, 'mixed_4' to 'mixed_7'."""
    conv = _convolution(params)
    x = conv("conv", x, 2, "VALID")
    x = conv("conv_2", conv("conv_1", x, 1, "VALID"))
    x = conv("conv_3", _max_pool(x, 2))
    x = _max_pool(conv("conv_4", x, 1, "VALID"), 2)
    for block in ("mixed", "mixed_1", "mixed_2"):
        x = _branches(conv, block, x, towers=(2, 3))
    x = _reduction(conv, "mixed_3", x, first="conv", towers=(3,))
    for block in ("mixed_4", "mixed_5", "mixed_6", "mixed_7")[:blocks]:
        x = _branches(conv, block, x, towers=(3, 5))
    return x


def _branches(conv: Conv, block: str, x: Array, towers: tuple[int, ...]) -> Array:
    """Four branches: 1x1, two towers of this many convolutions, and a pool with its 1x1."""
    parts = [conv(f"{block}.conv", x)]
    parts += [
        _tower(conv, f"{block}.{name}", x, depth)
        for name, depth in zip(("tower", "tower_1"), towers)
    ]
    return jnp.concatenate([*parts, conv(f"{block}.tower_2.conv", _average_pool(x))], -1)


def _reduction(
    conv: Conv, block: str, x: Array, first: str | None, towers: tuple[int, ...]
) -> Array:
    """Halve the map: each branch ends in stride 2 without padding."""
    parts = [conv(f"{block}.{first}", x, 2, "VALID")] if first else []
    for name, depth in zip(("tower", "tower_1"), towers):
        y = _tower(conv, f"{block}.{name}", x, depth - 1)
        parts.append(conv(f"{block}.{name}.conv_{depth - 1}", y, 2, "VALID"))
    return jnp.concatenate([*parts, _max_pool(x, 2)], -1)


def _wide(conv: Conv, block: str, x: Array, pool: Callable[[Array], Array]) -> Array:
    """The 8x8 blocks: two branches fork into 1x3 and 3x1."""
    a = conv(f"{block}.tower_conv", x)
    b = conv(f"{block}.tower_1_conv_1", conv(f"{block}.tower_1_conv", x))
    forks = [
        ("tower_mixed_conv", a),
        ("tower_mixed_conv_1", a),
        ("tower_1_mixed_conv", b),
        ("tower_1_mixed_conv_1", b),
    ]
    parts = [conv(f"{block}.conv", x)] + [conv(f"{block}.{name}", y) for name, y in forks]
    return jnp.concatenate([*parts, conv(f"{block}.tower_2_conv", pool(x))], -1)


def _tower(conv: Conv, name: str, x: Array, depth: int) -> Array:
    for k in range(depth):
        x = conv(f"{name}.conv" + (f"_{k}" if k else ""), x)
    return x


def _conv(params: Params, name: str, x: Array, stride: int, padding: str) -> Array:
    """Convolution, batch norm without scale (folded into the kernel), ReLU."""
    scale = jax.lax.rsqrt(params[name + ".var"] + EPS)
    y = jax.lax.conv_general_dilated(
        x,
        params[name + ".weight"] * scale,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(y + params[name + ".beta"] - params[name + ".mean"] * scale)


def _max_pool(x: Array, stride: int) -> Array:
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
    )


def _average_pool(x: Array) -> Array:
    def total(x: Array) -> Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))
