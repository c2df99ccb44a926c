"""LPIPS (Zhang et al. 2018), in its shift-tolerant form (Ghildyal & Liu 2022), on AlexNet.

    d(x, y) = sum_l mean_hw sum_c w_lc (n_l(x) - n_l(y))^2

with n_l the l-th activation, of unit length in each pixel. These are plain functions of a
dictionary of parameters; `experiments.get_weights lpips` downloads those of the authors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array
from diffusion_jax.models.convolution import convolve

# of the colors: ImageNet's, for images in [-1, 1]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

# of the trunk, by the names in the file
CONVOLUTIONS = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")

PADDING = (2, 2, 1, 1, 1)
BLUR = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
Params = dict[str, Array]


def convert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the state dict of the authors' network.

    Args:
      state: {name: array}, of AlexNet ('net.') and of the weights of its five activations ('lin0'
        to 'lin4').

    Returns:
      {'conv0.kernel': (H, W, in, out), 'conv0.bias': (out,), 'weight0': (out,), ..., 'weight4'}.

    Raises:
      KeyError: for the state dict of another network.
    """
    kept = {}
    for i, name in enumerate(CONVOLUTIONS):
        kept[f"conv{i}.kernel"] = state[f"net.{name}.weight"].transpose(2, 3, 1, 0)
        kept[f"conv{i}.bias"] = state[f"net.{name}.bias"]
        kept[f"weight{i}"] = state[f"lin{i}.model.1.weight"].reshape(-1)
    return kept


def features(x: Array, params: Params) -> tuple[Array, ...]:
    """Compute five feature maps whose squared differences add up to LPIPS.

    Args:
      x: (B, H, W, 3 or 1), images in [-1, 1] of at least about 24 pixels a side.
      params: the parameters.

    Returns:
      Maps (B, h, w, c).
    """
    h, found = (
        (jnp.broadcast_to(x, (*x.shape[:-1], 3)) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE),
        [],
    )
    for i, padding in enumerate(PADDING):
        if i in (1, 2):
            h = _halve(
                jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
            )
        h = _convolve(h, params[f"conv{i}.kernel"], padding) + params[f"conv{i}.bias"]
        h = jax.nn.relu(_halve(h) if i == 0 else h)
        # (the constant gives a derivative at 0, which torch's lacks)
        length = jnp.sqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-20)
        found.append(h / (length + 1e-10) * jnp.sqrt(params[f"weight{i}"]))
    return tuple(found)


def distance(x: Array, y: Array, params: Params) -> Array:
    """Compute LPIPS between pairs of images.

    Args:
      x: (B, H, W, 3 or 1) in [-1, 1].
      y: as x, an image for each of x.
      params: the parameters, as `convert` returns them.

    Returns:
      (B,), at least 0; 0 for equal images.
    """
    pairs = zip(features(x, params), features(y, params))
    return sum(jnp.mean(jnp.sum((a - b) ** 2, -1), axis=(1, 2)) for a, b in pairs)


def _halve(x: Array) -> Array:
    """Blur by (1, 2, 1) x (1, 2, 1) / 16 and keep every second pixel (Zhang 2019)."""
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    kernel = jnp.broadcast_to(BLUR[:, :, None, None], (3, 3, 1, x.shape[-1]))
    return _convolve(x, kernel, 0, stride=2, groups=x.shape[-1])


def _convolve(x: Array, kernel: Array, padding: int, stride: int = 1, groups: int = 1) -> Array:
    pads = [(padding, padding)] * 2
    return convolve(x, kernel, (stride, stride), pads, feature_group_count=groups)
