"""What the network is told besides the image: the noise level and the class, as one vector per
example.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError, unknown
from diffusion_jax.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # DDPM's


def sinusoidal(x: Array, features: int, max_period: float = 10_000.0) -> Array:
    """[sin(x w_i), cos(x w_i)] with w_i = max_period^(-i / (n - 1)), i = 0 .. n - 1, n = features
    // 2.

    (B,) -> (B, 2n) float32. Vaswani et al. 2017, section 3.5, in the exact frequencies and order of
    DDPM's code (Ho et al. 2020), so that its public weights fit.
    """
    n = features // 2
    frequency = np.exp(-np.log(max_period) * np.arange(n) / max(n - 1, 1)).astype(np.float32)
    angle = x.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def adm(x: Array, features: int, max_period: float = 10_000.0) -> Array:
    """[cos(x w_i), sin(x w_i)] with w_i = max_period^(-i / n), i = 0 .. n - 1, n = features // 2:
    (B,) -> (B, 2n) float32.

    `sinusoidal` in the frequencies and order of ADM's and DiT's code, so that their public weights
    fit.
    """
    n = features // 2
    frequency = np.exp(-np.log(max_period) * np.arange(n) / n).astype(np.float32)
    angle = x.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def fourier(x: Array, features: int, scale: float = 16.0) -> Array:
    """[sin(2 pi x w_i), cos(2 pi x w_i)] with n = features // 2 frequencies w_i ~ scale N(0, 1),
    drawn once for all.

    (B,) -> (B, 2n) float32. Tancik et al. 2020, eq. 5; NCSN++ uses it for log sigma (Song et al.
    2021).
    """
    frequency = (scale * np.random.default_rng(0).standard_normal(features // 2)).astype(np.float32)
    angle = 2 * np.pi * x.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def smooth(x: Array, features: int) -> Array:
    """`sinusoidal` of 1/4 to 16 radians per unit: (B,) -> (B, features) float32.

    For losses that take the derivative in the noise level, or differences of near levels, which
    fast waves drown (Lu & Song 2025, section 4.1; Song & Dhariwal 2024, section 3.1).
    """
    return sinusoidal(16.0 * x, features, max_period=64.0)


# c_noise is about [0, 1] or [-2, 2]; the factor 1000 makes c_noise = i / 1000 the integer step i of
# DDPM.
NOISE_FEATURES = {
    "sinusoidal": lambda c_noise, features: sinusoidal(1000.0 * c_noise, features),
    "adm": lambda c_noise, features: adm(1000.0 * c_noise, features),
    "fourier": fourier,
    "smooth": smooth,
}


def check_labels(labels, num_classes: int) -> None:
    """Raise a UserError unless every label is in 0 .. num_classes, where num_classes itself is the
    null label.

    For concrete labels (a data set, a command line): values cannot be inspected under jit, where a
      bad label gives NaN.
    """
    labels = np.asarray(labels)
    bad = labels[(labels < 0) | (labels > num_classes)]
    if bad.size:
        raise UserError(
            f"label {bad.flat[0]} is out of range: the model knows the classes 0 to {num_classes - 1}"
            f" and {num_classes}, the null label; correct the labels or set num_classes"
        )


class LabelEmbedding(nn.Module):
    """One learned row per class and one, the last, for "no class" (Ho & Salimans 2021).

    (B,) integers -> (B, features) float32. labels None means the null label for everybody. A label
    outside 0 .. num_classes gives NaN, never a neighbour's row (see check_labels).
    """

    num_classes: int
    features: int
    init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, labels: Array | None, batch: int) -> Array:
        rows = self.param("rows", self.init, (self.num_classes + 1, self.features), jnp.float32)
        if labels is None:
            labels = jnp.full((batch,), self.num_classes, jnp.int32)
        return (
            jnp.asarray(rows)
            .at[labels]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )


class ConditionEmbedding(nn.Module):
    """MLP(features of c_noise) + row of the label + a linear map of the text: what every block of a
    network is told.

    (B,), dict, (B, D) -> (B, width) float32. DDPM's appendix B for the noise level; ADM for the
    class (Dhariwal & Nichol 2021, section 3). num_classes 0: labels are ignored. text: its pooled
    vector (GLIDE, Nichol et al. 2022, section 3), or None. c_noise may be a scalar.

    second_time: the MLP also sees cond['to'] in [0, 1), where the move ends
    (parameterization.denoiser): 0, the data, where it is not given. By weights that are 0 at init,
    so that a diffusion model's parameters can start a network of two times.
    """

    features: int
    width: int
    num_classes: int = 0
    noise_features: str = "sinusoidal"
    noise_init: nn.initializers.Initializer = KERNEL_INIT
    label_init: nn.initializers.Initializer = nn.initializers.normal(1.0)
    second_time: bool = False

    @nn.compact
    def __call__(self, c_noise: Array, cond: dict, batch: int, text: Array | None = None) -> Array:
        if self.noise_features not in NOISE_FEATURES:
            raise unknown("noise embedding", self.noise_features, NOISE_FEATURES)
        c_noise = jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), (batch,))
        h = NOISE_FEATURES[self.noise_features](c_noise, self.features)
        h = nn.Dense(self.width, kernel_init=self.noise_init, name="noise_1")(h)
        if self.second_time:
            to = smooth(jnp.asarray(cond.get("to", jnp.zeros(batch)), jnp.float32), self.features)
            h = h + nn.Dense(
                self.width, use_bias=False, kernel_init=nn.initializers.zeros_init(), name="to"
            )(to)
        h = nn.Dense(self.width, kernel_init=self.noise_init, name="noise_2")(jax.nn.silu(h))
        if self.num_classes:
            h = h + LabelEmbedding(self.num_classes, self.width, self.label_init, name="label")(
                cond.get("label"), batch
            )
        if text is not None:
            h = h + nn.Dense(self.width, kernel_init=KERNEL_INIT, name="text")(text)
        return h
