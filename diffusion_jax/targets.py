"""Data laws whose denoiser is known exactly, so that samplers, objectives and likelihoods can be judged against truth.

Under x_t = alpha x0 + sigma eps a Gaussian stays Gaussian and a mixture stays a mixture; so E[x0 | x_t], the log-density at
every t and (for the Gaussian) the probability-flow map itself are closed forms. Points are (B, D); any shape (B, ...) with D
entries per example is taken and given back.

    target = gmm8();   target.denoise(process) -> Denoise;   target.log_density(process, x, t);   target.draw(keys, count)

A Target is what commands name: `--target='gmm(modes=20, dim=16)'`. It is made of the functions on laws further down
(denoise_mixture, flow, draw_gaussian, ...), which serve on their own. `reference` is the yardstick where there is no flow map.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.processes import gaussian as paths
from diffusion_jax.processes.gaussian import from_x0
from diffusion_jax.types import Array, Cond, Denoise, Key, Prediction, Process


class Gaussian(NamedTuple):
    """N(mean, basis diag(variances) basis^T). mean, variances: (D,); basis: (D, D), orthonormal columns."""

    mean: Array
    variances: Array
    basis: Array


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, diag(variances_k)). weights: (K,); means, variances: (K, D)."""

    weights: Array
    means: Array
    variances: Array


class Target(NamedTuple):
    """A law of data with everything about it that is exact.

    shape: of one example;  denoise(process) -> Denoise;  log_density(process, x (B, ...), t) -> (B,) nats at time t;
    draw(keys, count) -> (count, *shape) in jax's default precision;  flow(process, x, t, s) -> x at time s, the
    probability-flow map (Gaussian laws only, else None);  modes: the Mixture of its well-separated parts, or None.
    """

    shape: tuple[int, ...]
    denoise: Callable[[Process], Denoise]
    log_density: Callable[[Process, Array, Array], Array]
    draw: Callable[[Key, int], Array]
    flow: Callable[[Process, Array, Array, Array], Array] | None = None
    modes: Mixture | None = None


# ---- targets: what a command may name ------------------------------------------------------------------------------------


def from_gaussian(law: Gaussian) -> Target:
    """The Target of this Gaussian law."""
    return Target(
        shape=np.shape(law.mean),
        denoise=lambda process: denoise_gaussian(law, process),
        log_density=lambda process, x, t: log_density_gaussian(law, process, x, t),
        draw=lambda keys, count: draw_gaussian(law, keys, count),
        flow=lambda process, x, t, s: flow(law, process, x, t, s),
    )


def from_mixture(law: Mixture, modes: Mixture | None = None) -> Target:
    """The Target of this mixture. modes: what counts as its modes, where that is coarser than its components."""
    return Target(
        shape=np.shape(law.means)[1:],
        denoise=lambda process: denoise_mixture(law, process),
        log_density=lambda process, x, t: log_density_mixture(law, process, x, t),
        draw=lambda keys, count: draw_mixture(law, keys, count),
        modes=modes,
    )


def normal(dim: int = 2, seed: int = 0, condition: float = 100.0) -> Target:
    """A Gaussian with full covariance: variances from 1 down to 1 / condition in equal ratios, a random basis and mean."""
    need_ranges("normal", dim=(dim, 1, 4096), seed=(seed, 0, 2**32 - 1), condition=(condition, 1, 1e12))
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    variances = condition ** -np.linspace(0.0, 1.0, dim)
    return from_gaussian(Gaussian(0.5 * rng.standard_normal(dim), variances, basis))


def standard_normal(dim: int = 2) -> Target:
    """N(0, I), as a mixture of one component: the law whose every posterior is known by heart."""
    need_ranges("standard_normal", dim=(dim, 1, 10**6))
    return _by_components(_law(np.ones(1), np.zeros((1, dim)), 1.0))


def gmm8(std: float = 0.1) -> Target:
    """Eight equal Gaussians on the unit circle, the field's toy."""
    need_ranges("gmm8", std=(std, 1e-6, 100))
    return _by_components(_law(np.ones(8), _polar(1.0, 2 * np.pi * np.arange(8) / 8), std))


def gmm(modes: int = 20, dim: int = 2, std: float = 0.1, seed: int = 0) -> Target:
    """`modes` Gaussians: means from N(0, I), stds between std / 2 and 3 std / 2 by axis, weights up to threefold apart."""
    need_ranges("gmm", modes=(modes, 1, 10_000), dim=(dim, 1, 4096), std=(std, 1e-6, 100), seed=(seed, 0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    means, stds = rng.standard_normal((modes, dim)), std * rng.uniform(0.5, 1.5, (modes, dim))
    return _by_components(_law(rng.uniform(0.5, 1.5, modes), means, stds))


def checkerboard(fine: int = 6) -> Target:
    """The eight dark squares of a 4 x 4 board over [-1, 1]^2, each of fine^2 small Gaussians. Its modes are the squares."""
    need_ranges("checkerboard", fine=(fine, 1, 20))
    corners = np.array([(column, 2 * pair + column % 2) for column in range(4) for pair in range(2)]) / 2 - 1
    ticks = (np.arange(fine) + 0.5) / (2 * fine)
    within = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    means = (corners[:, None] + within).reshape(-1, 2)
    return from_mixture(_law(np.ones(len(means)), means, 0.25 / fine), _law(np.ones(8), corners + 0.25, math.sqrt(0.25 / 12)))


def rings(std: float = 0.03) -> Target:
    """Three circles of radius 1/3, 2/3 and 1 and equal weight."""
    need_ranges("rings", std=(std, 1e-3, 100))
    counts = [math.ceil(2 * math.pi * (ring + 1) / 3 / (1.5 * std)) for ring in range(3)]
    circles = [_polar((ring + 1) / 3, 2 * np.pi * np.arange(n) / n) for ring, n in enumerate(counts)]
    return from_mixture(_law(np.concatenate([np.full(n, 1 / n) for n in counts]), np.concatenate(circles), std))


def two_moons(std: float = 0.05) -> Target:
    """Two interleaved half circles of radius 1, centred."""
    need_ranges("two_moons", std=(std, 1e-3, 100))
    angle = np.linspace(0, np.pi, math.ceil(np.pi / (1.5 * std)))
    upper = _polar(1.0, angle) - [0.5, 0.25]
    return from_mixture(_law(np.ones(2 * len(angle)), np.concatenate([upper, -upper]), std))


def swiss_roll(std: float = 0.03, turns: float = 1.5) -> Target:
    """A spiral from radius 1/4 to 1, of equal density along its length."""
    need_ranges("swiss_roll", std=(std, 1e-3, 100), turns=(turns, 0.1, 100))
    angle = np.linspace(0, 1, 4000) * 2 * np.pi * turns
    path = _polar(np.linspace(0.25, 1.0, 4000), angle)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    places = np.linspace(0, length[-1], math.ceil(length[-1] / (1.5 * std)))
    means = np.stack([np.interp(places, length, path[:, axis]) for axis in range(2)], 1)
    return from_mixture(_law(np.ones(len(means)), means, std))


def pinwheel(arms: int = 5, std: float = 0.05) -> Target:
    """Bent arms around the origin (Johnson et al. 2016), each a chain of Gaussians that widen outwards."""
    need_ranges("pinwheel", arms=(arms, 1, 1000), std=(std, 1e-3, 100))
    radius = np.linspace(0.3, 1.2, 24)
    angle = 2 * np.pi * np.arange(arms)[:, None] / arms + 1.0 * np.exp(0.6 * radius) - 1.0
    means = _polar(np.broadcast_to(radius, angle.shape), angle).reshape(-1, 2)
    stds = np.tile(std * (0.4 + 0.8 * radius), arms)[:, None]
    return from_mixture(_law(np.tile(np.exp(-0.5 * ((radius - 0.75) / 0.25) ** 2), arms), means, stds))


def empirical(images: Array, labels: Array | None = None, *, block: int = 2048, again: int = 4) -> Target:
    """The finite set itself, (1 / N) sum_j delta(x - y_j), and its optimal denoiser: what a network without error learns.

    E[x0 | x_t] = sum_j w_j y_j,   w = softmax_j(-|x_t - alpha y_j|^2 / (2 sigma^2))

    (Karras et al. 2022, eq. 57; De Bortoli 2022.)

    images: (N, ...), floating in [-1, 1] or uint8, which are read as u / 127.5 - 1 and kept as bytes. labels (N,): with
    cond = {'label': (B,)} only images of that label count; a label that does not occur stands for 'any'. UserError for other
    shapes.

    Streamed with an online softmax in one scan, `block` images at a time: B examples need memory for (B + D) block numbers.
    Distances are a matrix product, |x|^2 - 2 x.y + |y|^2 about the data's mean; the nearest `again` images of every block are
    measured again as sums of squares: at small sigma the product's rounding, divided by sigma^2, would be nats, and only near
    images count there.
    """
    images = np.asarray(images)
    if images.ndim < 2 or not len(images) or (labels is not None and np.shape(labels) != (len(images),)):
        got = f"images {images.shape}, labels {np.shape(labels)}"
        raise UserError(f"an empirical target needs images (N, ...) and, if any, one label for each; got {got}")
    stream = _streamed(images.reshape(len(images), -1), labels, min(block, len(images)), again)

    def denoise_with(process: Process) -> Denoise:
        def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            *_, x0 = stream(process, x_t, t, cond)
            return from_x0(process, x_t, x0.reshape(x_t.shape), t)

        return denoise

    def log_density(process: Process, x: Array, t: Array, cond: Cond = None) -> Array:
        log_sum, count, _ = stream(process, x, t, cond)
        log_unit = 0.5 * jnp.log(2 * math.pi * _coefficients(process, x, t)[1][:, 0] ** 2)
        return log_sum - jnp.log(count.astype(x.dtype)) - math.prod(images.shape[1:]) * log_unit

    def draw(keys: Key, count: int) -> Array:
        keys = arrays.fold_in(arrays.example_keys(keys, count), 1)
        j = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(images)))(keys)
        return _values(jnp.asarray(images[np.asarray(j)]), jnp.result_type(float))

    return Target(images.shape[1:], denoise_with, log_density, draw)


def _by_components(law: Mixture) -> Target:
    return from_mixture(law, law)


def _law(weights, means, stds) -> Mixture:
    """A Mixture of numpy float64: it is cast to the precision of what it meets."""
    weights, means = np.asarray(weights, float), np.asarray(means, float)
    return Mixture(weights / weights.sum(), means, np.broadcast_to(np.asarray(stds, float) ** 2, means.shape))


def _polar(radius, angle) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _values(images: Array, dtype) -> Array:
    """uint8 -> [-1, 1]; floats as they are."""
    return images.astype(dtype) / 127.5 - 1 if images.dtype == jnp.uint8 else images.astype(dtype)


def _streamed(flat: np.ndarray, labels, block: int, again: int) -> Callable:
    """(process, x, t, cond) -> log sum_j exp(-|x - alpha y_j|^2 / (2 sigma^2)), how many count (B,), sum_j w_j y_j (B, D)."""
    count, missing = len(flat), -len(flat) % block
    labels = np.zeros(count, np.int32) if labels is None else np.asarray(labels, np.int32)
    mean = np.mean(np.asarray(_values(flat, np.float64)), axis=0)
    blocks = (np.pad(flat, ((0, missing), (0, 0))).reshape(-1, block, flat.shape[1]),
              np.pad(labels, (0, missing), constant_values=-1).reshape(-1, block))  # fmt: skip
    known = np.unique(labels)

    def stream(process: Process, x: Array, t: Array, cond: Cond):
        alpha, sigma = _coefficients(process, x, t)
        centre = jnp.asarray(mean, x.dtype)
        x = x.reshape(len(x), -1) - alpha * centre
        wanted = (cond or {}).get("label", jnp.full(len(x), -1))
        anything = ~jnp.isin(wanted, known)

        def one(carry, inputs):
            top, total, weighted, number = carry
            y, label = _values(inputs[0], x.dtype) - centre, inputs[1]
            counts = (label >= 0) & (anything[:, None] | (label == wanted[:, None]))  # (B, block)
            product = jnp.matmul(x, y.T, precision="highest")
            square = jnp.sum(x**2, 1, keepdims=True) - 2 * alpha * product + alpha**2 * jnp.sum(y**2, 1)
            logit = jnp.where(counts, -jnp.maximum(square, 0) / (2 * sigma**2), -jnp.inf)
            _, near = jax.lax.top_k(logit, min(again, block))  # (B, again)
            exact = jnp.sum((x[:, None] - alpha[:, None] * y[near]) ** 2, -1)
            exact = jnp.where(jnp.take_along_axis(counts, near, 1), -exact / (2 * sigma**2), -jnp.inf)
            logit = jnp.put_along_axis(logit, near, exact, 1, inplace=False)
            peak = jnp.maximum(top, jnp.max(logit, 1))
            weight, kept = jnp.exp(logit - peak[:, None]), jnp.exp(top - peak)
            weighted = kept[:, None] * weighted + jnp.matmul(weight, y, precision="highest")
            return (peak, kept * total + jnp.sum(weight, 1), weighted, number + jnp.sum(counts, 1, dtype=jnp.int32)), None

        none = jnp.zeros(len(x), x.dtype)
        start = (jnp.full_like(none, -1e30), none, jnp.zeros_like(x), jnp.zeros(len(x), jnp.int32))  # -inf - -inf would be NaN
        (top, total, weighted, number), _ = jax.lax.scan(one, start, blocks)
        return top + jnp.log(total), number, centre + weighted / total[:, None]

    return stream


# ---- the exact solution --------------------------------------------------------------------------------------------------


def reference(
    denoise: Denoise, process: Process, x: Array, t: float, s: float, *, cond: Cond = None, rtol: float = 1e-10
) -> np.ndarray:
    """x at time s of the probability-flow solution through x at time t, by an adaptive solve in float64: the yardstick.

    With u = sigma / alpha = tan(phi) and z = x / sqrt(alpha^2 + sigma^2) = cos(phi) x0 + sin(phi) eps the flow is

        dz / d log u = sin(phi) cos(phi) [cos(phi) eps-hat - sin(phi) x0-hat],

    in which everything is of order one at every noise level, and the process's clock, with its kinks if it has any, has dropped
    out. Dormand-Prince 8(7), PID control of the largest error of any entry, `rtol` a step. denoise must compute in its input's
    precision. Returns (B, ...) float64 numpy.
    """
    import diffrax

    with jax.enable_x64(True):
        def slope(log_u, z, _):
            u = jnp.exp(log_u)
            cos, sin = 1 / jnp.sqrt(1 + u**2), u / jnp.sqrt(1 + u**2)
            time = paths.time_of_logsnr(process, -2 * log_u)
            x0, eps = denoise(z * norm(time), time, cond)[:2]
            return sin * cos * (cos * eps - sin * x0)

        def norm(time):
            return jnp.hypot(process.alpha(time), process.sigma(time))

        @jax.jit
        def solve(x, t, s):
            ends = (-0.5 * paths.logsnr(process, time) for time in (t, s))
            control = diffrax.PIDController(rtol, rtol, pcoeff=0.3, icoeff=0.4, norm=lambda e: jnp.max(jnp.abs(e)))
            solved = diffrax.diffeqsolve(diffrax.ODETerm(slope), diffrax.Dopri8(), *ends, None, x / norm(t),
                                         stepsize_controller=control, max_steps=100_000,
                                         adjoint=diffrax.ForwardMode())  # fmt: skip
            return solved.ys[0] * norm(s)

        return np.asarray(solve(*(jnp.asarray(np.asarray(value), "float64") for value in (x, t, s))))


# ---- laws ----------------------------------------------------------------------------------------------------------------


def gaussian(mean: Array, covariance: Array) -> Gaussian:
    """N(mean (D,), covariance (D, D))."""
    variances, basis = jnp.linalg.eigh(covariance)
    return Gaussian(jnp.asarray(mean), jnp.maximum(variances, 0), basis)


def mixture(weights: Array, means: Array, stds: Array) -> Mixture:
    """A mixture from weights (K,), means (K, D) and standard deviations, anything that broadcasts to (K, D)."""
    means = jnp.asarray(means)
    weights = jnp.asarray(weights, means.dtype)
    return Mixture(weights / weights.sum(), means, jnp.broadcast_to(jnp.asarray(stds, means.dtype) ** 2, means.shape))


def ring_of_gaussians(modes: int = 8, radius: float = 1.0, std: float = 0.1) -> Mixture:
    """The field's toy: `modes` equal Gaussians on a circle in the plane."""
    angle = 2 * math.pi * jnp.arange(modes) / modes
    return mixture(jnp.ones(modes), radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), std)


def denoise_gaussian(target: Gaussian, process: Process) -> Denoise:
    """E[x0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)."""

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        mean, variances, basis = _cast(target, x_t.dtype)
        alpha, sigma = _coefficients(process, x_t, t)
        z = jnp.matmul(x_t.reshape(len(x_t), -1) - alpha * mean, basis, precision="highest")
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        x0 = mean + jnp.matmul(gain * z, basis.T, precision="highest")
        return from_x0(process, x_t, x0.reshape(x_t.shape), t)

    return denoise


def flow(target: Gaussian, process: Process, x: Array, t: Array, s: Array) -> Array:
    """The probability-flow map from time t to time s, exactly: each eigendirection scales as its standard deviation does."""
    mean, variances, basis = _cast(target, x.dtype)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _coefficients(process, x, t), _coefficients(process, x, s)
    z = jnp.matmul(x.reshape(len(x), -1) - alpha_t * mean, basis, precision="highest")
    z = z * jnp.sqrt((alpha_s**2 * variances + sigma_s**2) / (alpha_t**2 * variances + sigma_t**2))
    return (alpha_s * mean + jnp.matmul(z, basis.T, precision="highest")).reshape(x.shape)


def log_density_gaussian(target: Gaussian, process: Process, x: Array, t: Array) -> Array:
    """log p_t(x) in nats, (B,)."""
    mean, variances, basis = _cast(target, x.dtype)
    alpha, sigma = _coefficients(process, x, t)
    z = jnp.matmul(x.reshape(len(x), -1) - alpha * mean, basis, precision="highest")
    return _log_normal(z, alpha**2 * variances + sigma**2)


def denoise_mixture(target: Mixture, process: Process, labels: Array | None = None) -> Denoise:
    """E[x0 | x_t]: each component's own conditional mean, weighted by the responsibilities p(k | x_t).

    labels (K,): the components' classes; with cond = {'label': (B,)} only components of that label count, and a label that does
    not occur stands for 'any'.
    """

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        weights, means, variances = _cast(target, x_t.dtype)
        weights = weights * _counted(labels, cond)
        alpha, sigma = (c[:, None] for c in _coefficients(process, x_t, t))  # (B, 1, 1) against (K, D)
        offset = x_t.reshape(len(x_t), 1, -1) - alpha * means  # (B, K, D)
        total = alpha**2 * variances + sigma**2
        responsibility = jax.nn.softmax(jnp.log(weights) + _log_normal(offset, total))
        x0 = jnp.einsum("bk,bkd->bd", responsibility, means + alpha * variances / total * offset, precision="highest")
        return from_x0(process, x_t, x0.reshape(x_t.shape), t)

    return denoise


def log_density_mixture(
    target: Mixture, process: Process, x: Array, t: Array, labels: Array | None = None, cond: Cond = None
) -> Array:
    """log p_t(x) in nats, (B,); with labels and cond, as in denoise_mixture, log p_t(x, label), the joint density."""
    weights, means, variances = _cast(target, x.dtype)
    weights = weights * _counted(labels, cond)
    alpha, sigma = (c[:, None] for c in _coefficients(process, x, t))
    offset = x.reshape(len(x), 1, -1) - alpha * means
    return jax.nn.logsumexp(jnp.log(weights) + _log_normal(offset, alpha**2 * variances + sigma**2), axis=-1)


def _counted(labels: Array | None, cond: Cond) -> Array:
    """Which components count, (B, K), or 1 for all: those of cond's label."""
    if labels is None or cond is None or "label" not in cond:
        return jnp.ones(())
    labels, wanted = jnp.asarray(labels), cond["label"][:, None]
    return ((labels == wanted) | ~jnp.isin(wanted, labels)).astype(jnp.float32)


def draw_gaussian(target: Gaussian, keys: Key, count: int) -> Array:
    """`count` exact samples, (count, D), in the law's precision or, where jax has only float32, in that."""
    mean, variances, basis = _cast(target, target.mean.dtype)
    z = arrays.noise(keys, jnp.zeros((count, len(mean)), mean.dtype))
    return mean + jnp.matmul(z * jnp.sqrt(variances), basis.T, precision="highest")


def draw_mixture(target: Mixture, keys: Key, count: int) -> Array:
    """`count` exact samples, (count, D), in the law's precision or, where jax has only float32, in that."""
    weights, means, variances = _cast(target, target.means.dtype)
    keys = arrays.example_keys(keys, count)
    k = jax.vmap(lambda key: jax.random.choice(jax.random.fold_in(key, 1), len(weights), p=weights))(keys)
    z = arrays.noise(arrays.fold_in(keys, 0), means[k])
    return means[k] + jnp.sqrt(variances[k]) * z


def _cast(law, dtype):
    """A law in this precision, or the nearest that jax is set to."""
    return jax.tree.map(lambda value: jnp.asarray(value, jax.dtypes.canonicalize_dtype(dtype)), law)


def _coefficients(process: Process, x: Array, t: Array) -> tuple[Array, Array]:
    """alpha and sigma as (B, 1) columns."""
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return process.alpha(t)[:, None], process.sigma(t)[:, None]


def _log_normal(offset: Array, variance: Array) -> Array:
    """log N(offset; 0, diag(variance)), summed over the last axis."""
    return -0.5 * jnp.sum(offset**2 / variance + jnp.log(2 * math.pi * variance), axis=-1)
