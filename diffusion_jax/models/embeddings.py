"""Embeddings of the condition: noise level, class and text, as one vector per example."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # DDPM's


def sinusoidal(x: Array, features: int, max_period: float = 10_000.0) -> Array:
    """The sinusoidal embedding of DDPM's code (Vaswani et al. 2017, section 3.5; Ho et al. 2020).

        [sin(x w_i), cos(x w_i)],    w_i = max_period^(-i / (n - 1)),    i = 0 .. n - 1

    with n = features // 2. The frequencies and their order are exactly those of DDPM's code, so
    that its public weights can be used.

    Args:
      x: numbers, (B,).
      features: size of the embedding.
      max_period: 2 pi times this is the longest period.

    Returns:
      (B, 2n) float32.
    """
    n = features // 2
    frequency = np.exp(-np.log(max_period) * np.arange(n) / max(n - 1, 1)).astype(np.float32)
    angle = x.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def adm(x: Array, features: int, max_period: float = 10_000.0) -> Array:
    """The sinusoidal embedding of ADM's and DiT's code, so that their public weights can be used.

        [cos(x w_i), sin(x w_i)],    w_i = max_period^(-i / n),    i = 0 .. n - 1

    with n = features // 2.

    Args:
      x: numbers, (B,).
      features: size of the embedding.
      max_period: 2 pi times this bounds the periods.

    Returns:
      (B, 2n) float32.
    """
    n = features // 2
    frequency = np.exp(-np.log(max_period) * np.arange(n) / n).astype(np.float32)
    angle = x.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def fourier(x: Array, features: int, scale: float = 16.0) -> Array:
    """Random Fourier features (Tancik et al. 2020, eq. 5), NCSN++'s embedding of log sigma.

        [sin(2 pi x w_i), cos(2 pi x w_i)],    w_i ~ scale N(0, 1)

    with n = features // 2 frequencies that are drawn once and are the same for every network (Song
    et al. 2021).

    Args:
      x: numbers, (B,).
      features: size of the embedding.
      scale: standard deviation of the frequencies.

    Returns:
      (B, 2n) float32.
    """
    frequency = (scale * np.random.default_rng(0).standard_normal(features // 2)).astype(np.float32)
    angle = 2 * np.pi * x.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def smooth(x: Array, features: int) -> Array:
    """The sinusoidal embedding of low frequencies, 1/4 to 16 radians per unit.

    It is for losses that take the derivative with respect to the noise level, or differences of
    nearby levels, in which high frequencies dominate (Lu & Song 2025, section 4.1; Song & Dhariwal
    2024, section 3.1).

    Args:
      x: numbers, (B,).
      features: size of the embedding.

    Returns:
      (B, features) float32.
    """
    return sinusoidal(16.0 * x, features, max_period=64.0)


def input_waves(x: Array, exponents: Sequence[int]) -> list[Array]:
    """The Fourier features of an input, which show its least bits (Kingma et al. 2021, appendix C).

        sin(2^n pi x), cos(2^n pi x)

    Args:
      x: noised samples, (B, ..., C).
      exponents: n of each frequency.

    Returns:
      Two arrays of x's shape, in float32, for each n.
    """
    angles = [2.0**n * np.pi * x.astype(jnp.float32) for n in exponents]
    return [wave(angle) for wave in (jnp.sin, jnp.cos) for angle in angles]


# c_noise is about [0, 1] or [-2, 2]; the factor 1000 makes c_noise = i / 1000 the integer step i of
# DDPM. Those of EDM (Karras et al. 2022), 'plain', have no factor.
NOISE_FEATURES = {
    "sinusoidal": lambda c_noise, features: sinusoidal(1000.0 * c_noise, features),
    "adm": lambda c_noise, features: adm(1000.0 * c_noise, features),
    "adm_plain": adm,
    "fourier": fourier,
    "smooth": smooth,
}


def one_hot(labels: Array | None, num_classes: int, batch: int) -> Array:
    """Writes each label as a row of a unit matrix.

    Args:
      labels: integers from 0 to num_classes, (B,), of which the last is the null label; None means
        the null label for every example.
      num_classes: number of classes.
      batch: B, the number of rows where `labels` is None.

    Returns:
      (B, num_classes) float32, with zeros for the null label, and NaN for a label out of range.
    """
    if labels is None:
        return jnp.zeros((batch, num_classes), jnp.float32)
    labels = jnp.asarray(labels)[:, None]
    known = (labels >= 0) & (labels <= num_classes)
    return jnp.where(known, jnp.float32(labels == jnp.arange(num_classes)), jnp.nan)


def check_labels(labels: Array | np.ndarray, num_classes: int) -> None:
    """Checks that every label is in 0 .. num_classes, where num_classes itself is the null label.

    It is for concrete labels, of a data set or a command line. Under jit, values cannot be
    inspected, and a bad label gives NaN.

    Args:
      labels: integers of any shape.
      num_classes: number of classes of the model.

    Raises:
      UserError: for a label that is out of range.
    """
    labels = np.asarray(labels)
    bad = labels[(labels < 0) | (labels > num_classes)]
    if bad.size:
        raise UserError(
            f"label {bad.flat[0]} is out of range: the model has the classes 0 to "
            f"{num_classes - 1} and {num_classes}, the null label; correct the labels or set "
            "num_classes"
        )


def augmentation(cond: dict, size: int, batch: int, features: int) -> Array:
    """A linear map of the augmentation labels, zero at initialization (Karras et al. 2022).

    It is to be called in a compact method.

    Args:
      cond: a dict, with 'augment' (B, size) where examples are augmented; without it the labels are
        zeros, those of data as they are.
      size: the number of labels of an example.
      batch: B.
      features: the size of the result.

    Returns:
      (B, features) float32.
    """
    labels = jnp.asarray(cond.get("augment", jnp.zeros((batch, size))), jnp.float32)
    zeros = nn.initializers.zeros_init()
    return nn.Dense(features, use_bias=False, kernel_init=zeros, name="augment")(labels)


class LabelEmbedding(nn.Module):
    """A learned vector for each class and one, the last, for "no class" (Ho & Salimans 2021).

    It maps (B,) integers to (B, features) float32. Labels of None mean the null label for every
    example. A label outside 0 .. num_classes gives NaN, never the vector of another class (see
    `check_labels`).

    Attributes:
      num_classes: number of classes.
      features: size of the vectors.
      init: initializer of the vectors.
    """

    num_classes: int
    features: int
    init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, labels: Array | None, batch: int) -> Array:
        """Looks up the vectors of labels.

        Args:
          labels: integers from 0 to num_classes, (B,), of which the last is the null label; None
            means the null label for every example.
          batch: B, the number of vectors where `labels` is None.

        Returns:
          The vectors, (B, features) float32.
        """
        rows = self.param("rows", self.init, (self.num_classes + 1, self.features), jnp.float32)
        if labels is None:
            labels = jnp.full((batch,), self.num_classes, jnp.int32)
        return (
            jnp.asarray(rows)
            .at[labels]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )


def vector_of(cond: dict, size: int, batch: int) -> Array:
    """Returns the numbers that condition a network, or zeros, "nothing is known".

    Args:
      cond: a dict with 'vector' (B, size), which may be missing.
      size: the number of them.
      batch: B, the number of examples.

    Returns:
      (B, size) float32.
    """
    return jnp.asarray(cond.get("vector", jnp.zeros((batch, size))), jnp.float32)


class ConditionEmbedding(nn.Module):
    """The vector that every block of a network receives, (B,), dict, (B, D) -> (B, width) float32.

        MLP(features of c_noise) + embedding of the label + linear map of the text + MLP(vector)

    The noise level follows DDPM (Ho et al. 2020, appendix B), the class ADM (Dhariwal & Nichol
    2021, section 3), and the text, a pooled vector or None, GLIDE (Nichol et al. 2022, section 3).
    c_noise may be a scalar.

    Attributes:
      features: size of the embedding of the noise level.
      width: size of the result.
      num_classes: number of classes; 0 ignores labels.
      noise_features: one of NOISE_FEATURES.
      noise_init: initializer of the MLP.
      label_init: initializer of the labels' vectors.
      second_time: the MLP also receives cond['to'] in [0, 1), where the move ends (see
        parameterization.denoiser), or 0, the data, without that entry. The weights for it are 0 at
        initialization, so that the parameters of a diffusion model can initialize a network with
        two times.
      augment: size of cond['augment'], whose linear map, zero at initialization, is added to the
        features of the noise level (Karras et al. 2022); 0 is none.
      vector: size of cond['vector'], numbers of which the last is 1 where they are known; zeros are
        "nothing is known", as is a missing entry. 0 is none.
    """

    features: int
    width: int
    num_classes: int = 0
    noise_features: str = "sinusoidal"
    noise_init: nn.initializers.Initializer = KERNEL_INIT
    label_init: nn.initializers.Initializer = nn.initializers.normal(1.0)
    second_time: bool = False
    augment: int = 0
    vector: int = 0

    def __call__(self, c_noise: Array, cond: dict, batch: int, text: Array | None = None) -> Array:
        """Embeds the condition.

        Args:
          c_noise: see `parts`.
          cond: see `parts`.
          batch: see `parts`.
          text: see `parts`.

        Returns:
          The sum of the parts, (B, width) float32.
        """
        return functools.reduce(operator.add, self.parts(c_noise, cond, batch, text))

    @nn.compact
    def parts(
        self, c_noise: Array, cond: dict, batch: int, text: Array | None = None
    ) -> tuple[Array, ...]:
        """Embeds noise level, class and text, of which the last two may be absent.

        Args:
          c_noise: the noise level, scalar or (B,).
          cond: a dict with 'label' (B,), 'augment' (B, augment), 'vector' (B, vector) and, with
            second_time, 'to' (B,), all optional.
          batch: B, the number of examples.
          text: pooled vectors, (B, D), or None.

        Returns:
          One to three arrays (B, width) float32, that of the noise level first.

        Raises:
          UserError: if the embedding of the noise level is unknown.
        """
        if self.noise_features not in NOISE_FEATURES:
            raise unknown("noise embedding", self.noise_features, NOISE_FEATURES)
        c_noise = jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), (batch,))
        h = NOISE_FEATURES[self.noise_features](c_noise, self.features)
        if self.augment:
            h = h + augmentation(cond, self.augment, batch, h.shape[-1])
        h = nn.Dense(self.width, kernel_init=self.noise_init, name="noise_1")(h)
        if self.second_time:
            to = smooth(jnp.asarray(cond.get("to", jnp.zeros(batch)), jnp.float32), self.features)
            zeros = nn.initializers.zeros_init()
            h = h + nn.Dense(self.width, use_bias=False, kernel_init=zeros, name="to")(to)
        parts = [nn.Dense(self.width, kernel_init=self.noise_init, name="noise_2")(jax.nn.silu(h))]
        if self.num_classes:
            label = LabelEmbedding(self.num_classes, self.width, self.label_init, name="label")
            parts.append(label(cond.get("label"), batch))
        if text is not None:
            parts.append(nn.Dense(self.width, kernel_init=KERNEL_INIT, name="text")(text))
        if self.vector:
            vector = vector_of(cond, self.vector, batch)
            vector = nn.Dense(self.width, kernel_init=KERNEL_INIT, name="vector_1")(vector)
            last = nn.Dense(self.width, kernel_init=KERNEL_INIT, name="vector_2")
            parts.append(last(jax.nn.silu(vector)))
        return tuple(parts)


def concatenated(x: Array, cond: dict, channels: int) -> Array:
    """Appends the dense condition to the channels of a network's input (Saharia et al. 2021, SR3).

    Args:
      x: the input, (B, N_1, ..., N_d, C).
      cond: a dict with 'concat' (B, N_1, ..., N_d, channels), or without it for 0 channels.
      channels: number of channels that the network has for it, its option extra_channels.

    Returns:
      (B, N_1, ..., N_d, C + channels).

    Raises:
      UserError: while tracing, for a condition of other channels.
    """
    given = cond["concat"].shape[-1] if "concat" in cond else 0
    if given != channels:
        raise UserError(
            f"extra_channels={channels}, but cond['concat'] has {given}; make them equal"
        )
    if not channels:
        return x
    return jnp.concatenate([x, cond["concat"].astype(x.dtype)], axis=-1)
