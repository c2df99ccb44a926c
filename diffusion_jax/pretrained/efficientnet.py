"""EfficientNet-lite0 (Tan & Le 2019), an ImageNet classifier of 4.7 million parameters.

It gives light features (1280) and logits (1000) where InceptionV3 is too slow: the variant for
small devices, with no squeeze-and-excite, with ReLU6 and TensorFlow's padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array

SIZE, WIDTH, CLASSES = 224, 1280, 1000
RESIZE = "224, bilinear, antialiased"
EPS = 1e-3

# the number of blocks of each stage, and the stride of the first of them
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))

Params = dict[str, Array]  # by the names of the torch file; kernels (H, W, in, out)


def convert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the tensors of the torch file: kernels (out, in, H, W) -> (H, W, in, out).

    Args:
      tensors: {name: array} of the file. Scalars, which count batches, are dropped.
    """
    tensors = {name: value for name, value in tensors.items() if value.ndim}
    return {
        name: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        for name, value in tensors.items()
    }


@jax.jit
def forward(images: Array, params: Params) -> tuple[Array, Array]:
    """Compute features and logits of images, which are resized and scaled by (u - 127) / 128.

    Args:
      images: uint8 (B, H, W, 3).
      params: the parameters.

    Returns:
      (features (B, 1280), logits (B, 1000)), float32.
    """
    x = jax.image.resize(images.astype(jnp.float32), (len(images), SIZE, SIZE, 3), "bilinear")
    return network((x - 127) / 128, params)


def network(x: Array, params: Params) -> tuple[Array, Array]:
    """Compute the features and the logits of images.

    Args:
      x: (B, 224, 224, 3), normalized as the network expects it.
      params: the parameters, as `convert` returns them.

    Returns:
      (features (B, 1280), logits (B, 1000)).
    """
    x = jax.nn.relu6(_conv(params, "_conv_stem", "_bn0", x, 2))
    strides = [stride if k == 0 else 1 for blocks, stride in STAGES for k in range(blocks)]
    for block, stride in enumerate(strides):
        x = _inverted_residual(params, f"_blocks.{block}.", x, stride)
    features = jnp.mean(jax.nn.relu6(_conv(params, "_conv_head", "_bn1", x, 1)), (1, 2))
    logits = jnp.matmul(features, params["_fc.weight"].T, precision=jax.lax.Precision.HIGHEST)
    return features, logits + params["_fc.bias"]


def _inverted_residual(params: Params, block: str, x: Array, stride: int) -> Array:
    """Widen, filter each channel, narrow without activation; residual where shapes agree."""
    y = x
    if block + "_expand_conv.weight" in params:
        y = jax.nn.relu6(_conv(params, block + "_expand_conv", block + "_bn0", y, 1))
    y = jax.nn.relu6(_conv(params, block + "_depthwise_conv", block + "_bn1", y, stride))
    y = _conv(params, block + "_project_conv", block + "_bn2", y, 1)
    return x + y if y.shape == x.shape else y


def _conv(params: Params, conv: str, norm: str, x: Array, stride: int) -> Array:
    """Convolution and batch norm, whose scale is folded into the kernel."""
    scale = params[norm + ".weight"] * jax.lax.rsqrt(params[norm + ".running_var"] + EPS)
    kernel = params[conv + ".weight"] * scale
    groups = x.shape[-1] // kernel.shape[2]  # all channels where the convolution is depthwise
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=jax.lax.Precision.HIGHEST,
    )
    return y + params[norm + ".bias"] - params[norm + ".running_mean"] * scale
