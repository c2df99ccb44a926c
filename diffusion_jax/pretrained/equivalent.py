"""Parameters of networks that compute the same function by other conventions."""

from __future__ import annotations

import numpy as np

from diffusion_jax.pretrained.published import Flat


def of_one_class(params: Flat, label: int) -> dict[str, np.ndarray]:
    """Make an unconditional network of a class-conditional one, for one class.

    The row of the label in the embedding becomes part of a bias.

    Args:
      params: flat parameters of the class-conditional network.
      label: the number of the class.
    """
    params = dict(params)
    rows = params.pop("condition/label/rows")
    return params | {"condition/noise_2/bias": params["condition/noise_2/bias"] + rows[label]}


def with_steps(params: Flat, noise_embedding: str, shift: float) -> dict[str, np.ndarray]:
    """Change a network that is given 1000 c_noise into one that is given j = 1000 c_noise + shift.

    The features of j are sines and cosines, and those of j - shift are the same with each pair
    rotated, which is a change of the first kernel.

    Args:
      params: flat parameters.
      noise_embedding: 'sinusoidal' or 'adm', as in models/embeddings.py.
      shift: the shift in steps.
    """
    kernel = np.asarray(params["condition/noise_1/kernel"], np.float64)
    half = len(kernel) // 2
    last = half - 1 if noise_embedding == "sinusoidal" else half  # as in models/embeddings.py
    angle = shift * (10_000.0 ** (-np.arange(half) / max(last, 1))).astype(np.float32).astype(
        np.float64
    )
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    sines, cosines = (
        (kernel[:half], kernel[half:])
        if noise_embedding == "sinusoidal"
        else (kernel[half:], kernel[:half])
    )
    rotated = [cos * sines + sin * cosines, cos * cosines - sin * sines]
    rotated = rotated if noise_embedding == "sinusoidal" else rotated[::-1]
    return dict(params) | {"condition/noise_1/kernel": np.concatenate(rotated).astype(np.float32)}


def with_last(params: Flat, channels: int, factor: float, variance: bool) -> dict[str, np.ndarray]:
    """Change the last layer of a network.

    Args:
      params: flat parameters.
      channels: the channels of the prediction.
      factor: the prediction is divided by it.
      variance: whether the channels beyond them, a learned variance, are kept.
    """

    def change(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                leaf[..., :channels] / np.float32(factor),
                leaf[..., channels:] if variance else leaf[..., :0],
            ],
            -1,
        )

    return dict(params) | {name: change(params[name]) for name in ("last/kernel", "last/bias")}
