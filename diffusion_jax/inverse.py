"""Inverse problems and edits by any denoiser, none of it trained for: what is x0, given a measurement y = A(x0) + std n?

Where A is linear all that the methods ask of it follows from A, its transpose and functions of A A^T = U diag(s^2) U^T:

    A^+ y = A^T U diag(1 / s^2) U^T y,        (r^2 A A^T + std^2 I)^-1 y = U diag(1 / (r^2 s^2 + std^2)) U^T y.

A method is a function of the denoiser (`ddnm`, `pigdm`), which then serves every sampler, or a wrapper of any sampler
(`replacement`, `repaint`, `dps`), as correctors are. `restore` runs either and ends on the measurement exactly where that has
no noise. `posterior` and `conditional` are the truth for mixtures, which methods are judged by. At the end: encoding,
interpolation, SDEdit, translation.

In the frame z = x_t / alpha, u = sigma / alpha a denoiser is told of y by moving x0-hat by u^2 grad_z log p(y | z) (Bayes' rule
for scores).
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, guidance, targets
from diffusion_jax.arrays import expand
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base
from diffusion_jax.samplers.base import Noise, Sampler
from diffusion_jax.types import Array, Cond, Denoise, Key, Prediction, Process

SMALL = 1e-6  # of A A^T's largest eigenvalue: directions below it count as not measured
Mask = np.ndarray  # (H, W, 1) float32: 1 is measured, 0 is to be painted


class Measurement(NamedTuple):
    """y = forward(x0) + std n, n ~ N(0, I).

    forward: x (B, ...) -> y (B, ...). Where it is linear, adjoint: y -> A^T y, and spectral: (y, f) -> U f(s^2) U^T y, f of the
    eigenvalues of A A^T; both None where it is not. std: a number.
    """

    forward: Callable[[Array], Array]
    std: float = 0.0
    adjoint: Callable[[Array], Array] | None = None
    spectral: Callable[[Array, Callable[[Array], Array]], Array] | None = None


def measure(measurement: Measurement, key: Key, x0: Array) -> Array:
    """y = A(x0) + std n, image i's noise from its own key, in a stream that no sampler uses; none where nothing is measured."""
    y = measurement.forward(x0)
    if not measurement.std:
        return y
    n = arrays.noise(arrays.fold_in(arrays.example_keys(key, len(x0)), 0x7FFFFFFD), y)
    if measurement.spectral is not None:
        n = measurement.spectral(n, lambda s2: jnp.where(s2 > 0, 1.0, 0.0))
    return y + measurement.std * n


def pinv(measurement: Measurement, y: Array) -> Array:
    """A^+ y, the x of least norm that comes nearest to y."""
    return measurement.adjoint(measurement.spectral(y, lambda s2: _ratio(jnp.ones_like(s2), s2, s2 > SMALL * jnp.max(s2))))


def consistent(measurement: Measurement, x: Array, y: Array) -> Array:
    """The x nearest to `x` with A x = y: (x - A^+ A x) + A^+ y, in the order that leaves known pixels equal to y bit for bit."""
    return (x - pinv(measurement, measurement.forward(x))) + pinv(measurement, y)


def _ratio(above: Array, below: Array, where: Array) -> Array:
    """above / below, 0 outside `where`."""
    return jnp.where(where, above / jnp.where(where, below, 1.0), 0.0)


# ---- measurements: functions of the shape of an example --------------------------------------------------------------------


def inpaint(shape: tuple[int, ...], mask: Mask, std: float = 0.0) -> Measurement:
    """y = mask x: A A^T is the mask itself. mask: ones and zeros that broadcast to `shape`, such as (H, W, 1), else UserError."""
    if len(np.shape(mask)) != len(shape) or any(m not in (1, n) for m, n in zip(np.shape(mask), shape)):
        raise UserError(f"a mask of shape {np.shape(mask)} does not fit examples {tuple(shape)}; give one of the same size")
    known = jnp.asarray(mask)
    return Measurement(
        lambda x: known.astype(x.dtype) * x, _std(std), lambda y: known * y, lambda y, f: f(known.astype(y.dtype)) * y
    )


def colourise(shape: tuple[int, ...], std: float = 0.0) -> Measurement:
    """y (B, H, W, 1), the mean of the channels; A A^T = I / C. UserError for grey images."""
    if len(shape) != 3 or shape[-1] == 1:
        raise UserError(f"colourise needs colour images, and examples are {tuple(shape)}; take inpaint, superres or deblur")
    return Measurement(lambda x: jnp.mean(x, -1, keepdims=True), _std(std), lambda y: jnp.repeat(y / shape[-1], shape[-1], -1),
                       lambda y, f: f(jnp.asarray(1 / shape[-1], y.dtype)) * y)  # fmt: skip


def superres(shape: tuple[int, ...], factor: int = 4, std: float = 0.0) -> Measurement:
    """y (B, H / factor, W / factor, C), means of factor x factor pixels; A A^T = I / factor^2. UserError if it does not divide."""
    height, width, channels = _image(shape, "superres")
    if factor < 1 or height % factor or width % factor:
        raise UserError(f"superres(factor={factor}) does not divide images of {height}x{width}")

    def forward(x):
        return jnp.mean(x.reshape(-1, height // factor, factor, width // factor, factor, channels), (2, 4))

    def adjoint(y):
        return jnp.repeat(jnp.repeat(y / factor**2, factor, 1), factor, 2)

    return Measurement(forward, _std(std), adjoint, lambda y, f: f(jnp.asarray(1 / factor**2, y.dtype)) * y)


def deblur(shape: tuple[int, ...], width: float = 1.0, kernel: str = "gaussian", std: float = 0.0) -> Measurement:
    """y = kernel * x, a convolution that wraps around: diagonal under the FFT, s^2 = |h-hat|^2.

    kernel: 'gaussian' of standard deviation `width` pixels, or 'uniform', a square of side 2 width + 1.
    """
    need_ranges("deblur", width=(width, 1e-3, 1e4))
    height, across, _ = _image(shape, "deblur")
    if kernel not in ("gaussian", "uniform") or width <= 0:
        raise UserError(f"deblur(width={width}, kernel='{kernel}'): the kernel is 'gaussian' or 'uniform', its width above 0")

    def profile(n):
        place = np.minimum(np.arange(n), n - np.arange(n))
        weight = np.exp(-0.5 * (place / width) ** 2) if kernel == "gaussian" else (place <= width).astype(float)
        return weight / weight.sum()

    h = jnp.asarray(np.fft.fft2(np.outer(profile(height), profile(across))).real[..., None], jnp.float32)  # symmetric: real

    def filtered(x, gain):
        return jnp.fft.ifft2(gain.astype(x.dtype) * jnp.fft.fft2(x, axes=(1, 2)), axes=(1, 2)).real.astype(x.dtype)

    spectral = lambda y, f: filtered(y, f(h.astype(y.dtype) ** 2))  # noqa: E731
    return Measurement(lambda x: filtered(x, h), _std(std), lambda y: filtered(y, h), spectral)


def linear(shape: tuple[int, ...], matrix: Any, std: float = 0.0) -> Measurement:
    """y (B, M) = matrix (M, D) x, x flattened; any linear map in few dimensions. UserError for a matrix of another width."""
    dim, matrix = math.prod(shape), np.atleast_2d(np.asarray(matrix, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise UserError(f"linear: the matrix is {matrix.shape}; for examples {tuple(shape)} it must be (M, {dim})")
    eigenvalues, basis = np.linalg.eigh(matrix @ matrix.T)
    times = lambda a, y: jnp.matmul(y, jnp.asarray(a.T, y.dtype), precision="highest")  # noqa: E731
    return Measurement(
        lambda x: times(matrix, x.reshape(len(x), -1)), _std(std), lambda y: times(matrix.T, y).reshape(-1, *shape),
        lambda y, f: times(basis, f(jnp.asarray(eigenvalues, y.dtype)) * times(basis.T, y)))  # fmt: skip


def saturate(shape: tuple[int, ...], gain: float = 2.0, std: float = 0.0) -> Measurement:
    """y = clip(gain x, -1, 1), an overexposed picture: not linear, so only `dps` takes it."""
    need_ranges("saturate", gain=(gain, 1e-3, 1e4))
    return Measurement(lambda x: jnp.clip(gain * x, -1.0, 1.0), _std(std))


def _std(std: float) -> float:
    need_ranges("the noise of a measurement", std=(std, 0, 1e4))
    return float(std)


def _image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"{name} is for images (H, W, C), and these examples are {tuple(shape)}")
    return shape


# ---- masks: functions of the shape of an image -----------------------------------------------------------------------------


def half(shape: tuple[int, ...]) -> Mask:
    """The upper half is known."""
    mask = np.zeros((*shape[:2], 1), np.float32)
    mask[: shape[0] // 2] = 1
    return mask


def box(shape: tuple[int, ...], side: float = 0.5) -> Mask:
    """All is known but a box in the middle, `side` of the height and of the width."""
    if not 0 < side < 1:
        raise UserError(f"box(side={side}): the side is a share of the image's, between 0 and 1")
    mask = np.ones((*shape[:2], 1), np.float32)
    low, high = zip(*[(round(n * (1 - side) / 2), round(n * (1 + side) / 2)) for n in shape[:2]])
    mask[low[0] : high[0], low[1] : high[1]] = 0
    return mask


def random(shape: tuple[int, ...], keep: float = 0.3, seed: int = 0) -> Mask:
    """A share `keep` of the pixels is known, anywhere."""
    need_ranges("random", seed=(seed, 0, 2**32 - 1))
    if not 0 < keep < 1:
        raise UserError(f"random(keep={keep}): the share of known pixels is between 0 and 1")
    order = np.random.Generator(np.random.Philox(seed)).permutation(math.prod(shape[:2]))
    return (order < round(keep * order.size)).astype(np.float32).reshape(*shape[:2], 1)


# ---- methods ---------------------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """How a denoiser, or a sampler, is told of y. Either is left as it is by default.

    guide(denoise, process, measurement, y) -> Denoise;  wrap(sampler, measurement, y) -> Sampler;  linear: whether A must be.
    """

    guide: Callable[..., Denoise] = lambda denoise, process, measurement, y: denoise
    wrap: Callable[..., Sampler] = lambda sampler, measurement, y: sampler
    linear: bool = True


def restore(method: Method, measurement: Measurement, y: Array, sampler: Sampler, denoise: Denoise, process: Process, key: Key,
            x: Array, ts: Array, cond: Cond = None, *, clip: tuple[float, float] | None = None, **options):
    """A draw of x0 given y, by any sampler: what samplers.base.sample returns, x0-hat first.

    clip: keeps the guided x0-hat in these limits. Where the measurement is linear and has no noise the result has A x0 = y,
    exactly on the known pixels of a mask. Raises UserError for a method that needs a linear measurement and has none.
    """
    if method.linear and measurement.spectral is None:
        raise UserError("this method needs a linear measurement, and this one is not linear; take dps")
    guided = method.guide(denoise, process, measurement, y)
    guided = guided if clip is None else guidance.clip_x0(guided, process, *clip)
    out = base.sample(method.wrap(sampler, measurement, y), guided, process, key, x, ts, cond, **options)
    if measurement.std or measurement.spectral is None:
        return out
    return (consistent(measurement, out[0], y), *out[1:]) if isinstance(out, tuple) else consistent(measurement, out, y)


def unguided() -> Method:
    """y is looked at only at the end, by `consistent`: the baseline of every method."""
    return Method(linear=False)


def ddnm(data_std: float = 1.0) -> Method:
    """DDNM (Wang et al. 2023, eq. 13): the measured part of x0-hat is replaced, x0-hat + A^+ (y - A x0-hat).

    With noise each singular direction goes r^2 s^2 / (r^2 s^2 + std^2) of the way, r^2 = `spread`: the mean of N(x0-hat, r^2 I)
    given y, in one with eq. 13 as std -> 0. (The paper's DDNM+, eq. 17-19, has this weight 1 down to some noise level, and
    takes noise out of the sampler.)
    """
    need_ranges("ddnm", data_std=(data_std, 1e-6, 1e4))

    def guide(denoise, process, measurement, y):
        def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            prediction = denoise(x_t, t, cond)
            if measurement.std == 0:
                x0 = consistent(measurement, prediction.x0, y)
            else:
                r2 = spread(process, t, data_std)
                x0 = prediction.x0 + expand(r2, x_t) * _pull(measurement, prediction.x0, y, r2)
            return gaussian.with_x0(process, prediction, x_t, x0, t)

        return guided

    return Method(guide)


def pigdm(data_std: float = 1.0, symmetric: bool = False) -> Method:
    """PiGDM (Song et al. 2023, eq. 8): p(x0 | x_t) is taken for N(x0-hat, r^2 I), r^2 = `spread`, and p(y | x_t) for Gaussian:

        x0-hat + u^2 J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0-hat),     J = d x0-hat / dz,

    one vector-Jacobian product a look. Exact for data N(m, data_std^2 I). symmetric: J v stands for J^T v, as the exact
    J = Cov(x0 | x_t) / u^2 is symmetric (a network's is not quite); forward mode is twice as fast in a loop on a CPU. (The
    paper's algorithm 1 multiplies the guidance by r^2 besides, which leaves high noise as it is and fades it out at low noise.)
    """
    need_ranges("pigdm", data_std=(data_std, 1e-6, 1e4))

    def guide(denoise, process, measurement, y):
        def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            transform = jax.linearize if symmetric else jax.vjp
            x0, times_jacobian, prediction = transform(lambda x: _x0_and_all(denoise(x, t, cond)), x_t, has_aux=True)
            pulled = times_jacobian(_pull(measurement, x0, y, spread(process, t, data_std)))
            x0 = x0 + expand(process.sigma(t) ** 2 / process.alpha(t), x_t) * (pulled if symmetric else pulled[0])
            return gaussian.with_x0(process, prediction, x_t, x0, t)

        return guided

    return Method(guide)


def dps(scale: float = 1.0, symmetric: bool = False) -> Method:
    """DPS (Chung et al. 2023, algorithm 1): after each move, z - scale / |y - A(x0-hat)| grad_z |y - A(x0-hat)|^2.

    The gradient is at the move's start; the step is in z = x_t / alpha, so that it is the same under every process, and the
    paper's own for VE. `scale` is for each move and has the unit of x0: more moves or larger images want another. symmetric: as
    in `pigdm`, and many times faster with convolutions on a CPU. Any differentiable A.
    """
    need_ranges("dps", scale=(scale, 0, 1e6))

    def wrap(sampler, measurement, y):
        def misfit(x0):
            return jnp.sum(jnp.sqrt(arrays.sum_per_example((y - measurement.forward(x0)) ** 2) + 1e-12))

        def gradient(x, t, denoise):
            transform = jax.linearize if symmetric else jax.vjp
            x0, times_jacobian = transform(lambda x: denoise(x, t).x0, x)
            pulled = times_jacobian(jax.grad(misfit)(x0))
            return pulled if symmetric else pulled[0]

        def step(noise, x, memory, t, s, denoise, process):
            slope = gradient(x, t, denoise)  # |r|^-1 grad |r|^2 = 2 grad |r|, in x: alpha_t times less than in z
            moved, memory = sampler.step(noise, x, memory, t, s, denoise, process)
            return moved - 2 * scale * process.alpha(s) * process.alpha(t) * slope, memory

        return sampler._replace(step=step, nfe=0 if base.adaptive(sampler) else sampler.nfe + 1)

    return Method(wrap=wrap, linear=False)


def replacement() -> Method:
    """After each move the measured part of x_s is drawn from q(A x_s | y): imputation (Song et al. 2021, appendix I.2).

    Where y's own noise is the larger, alpha_s std > sigma_s s, nothing is replaced any more. There x_s / alpha_s is y itself in the
    measured directions, and what is random in them after that is the sampler's own noise: with a noisy measurement take a stochastic
    sampler, since a deterministic one leaves less spread than the posterior has. The same holds for `repaint`.
    """

    def wrap(sampler, measurement, y):
        def step(noise, x, memory, t, s, denoise, process):
            x, memory = sampler.step(noise, x, memory, t, s, denoise, process)
            return _replaced(measurement, process, x, y, s, noise.extra(_REPLACED)), memory

        return sampler._replace(step=step)

    return Method(wrap=wrap)


def repaint(resample: int = 10, jump: int = 1) -> Method:
    """RePaint (Lugmayr et al. 2022, algorithm 1): replacement, each move made `resample` times, x_s noised back to x_t between.

    With a noisy measurement, which the paper does not treat, a measured direction is replaced only while x_s is noisier
    than y. After that it moves plainly: every pass starts from its part of x_t instead of from x_s with new noise, which
    would drift to the prior. The other directions are resampled given it, as before.

    Args:
      resample: how often each move is made; 1 is `replacement`.
      jump: moves, of equal log-SNR, that one move of the grid is divided into and that are gone back over together (the
        paper's jump length).

    Raises:
      UserError: one of them is below 1.
    """
    need_ranges("repaint", resample=(resample, 1, 10_000), jump=(jump, 1, 10_000))

    def wrap(sampler, measurement, y):
        def step(noise, x, memory, t, s, denoise, process):
            times = _between(process, t, s, jump)

            def again(u, carry):
                moved, last = carry
                ratio, var = gaussian.transition(process, t, s)
                noised = ratio * moved + jnp.sqrt(var) * noise.extra(_REPAINT + u)
                current = jnp.where(u > 0, _not_replaced(measurement, process, noised, x, times[1]), x)

                def down(carry, j):
                    own = _numbered(noise, _PASSES + (u * jump + j) * _EACH)
                    x, memory = sampler.step(own, *carry, times[j], times[j + 1], denoise, process)
                    return (_replaced(measurement, process, x, y, times[j + 1], own.extra(_EACH - 9)), memory), None

                # what a multistep method remembers is of the pass before; an adaptive one remembers its evaluations
                return jax.lax.scan(down, (current, last if base.adaptive(sampler) else memory), jnp.arange(jump))[0]

            return jax.lax.fori_loop(0, resample, again, (x, memory))

        starts = range(0, len(sampler.warmup), jump)
        warmup = tuple(resample * sum(sampler.warmup[i : i + jump]) for i in starts)
        return sampler._replace(step=step, nfe=sampler.nfe * resample * jump, warmup=warmup)

    return Method(wrap=wrap)


# numbers of a step's extra noises: those of correctors come before, those of repaint's passes behind
_REPLACED, _REPAINT, _PASSES, _EACH = 0x1000, 0x2000, 0x10000, 64


def spread(process: Process, t: Array, data_std: float = 1.0) -> Array:
    """r^2, the variance of x0 given x_t, were the data N(m, data_std^2 I): u^2 d^2 / (u^2 + d^2). PiGDM has d = 1."""
    u2 = (process.sigma(t) / process.alpha(t)) ** 2
    return u2 * data_std**2 / (u2 + data_std**2)


def _pull(measurement: Measurement, x0: Array, y: Array, r2: Array) -> Array:
    """A^T (r^2 A A^T + std^2 I)^-1 (y - A x0), over what is measured."""
    r2, variance = expand(r2, y), measurement.std**2
    inverse = lambda s2: _ratio(jnp.ones_like(s2), r2 * s2 + variance, s2 > SMALL * jnp.max(s2))  # noqa: E731
    return measurement.adjoint(measurement.spectral(y - measurement.forward(x0), inverse))


def _x0_and_all(prediction: Prediction) -> tuple[Array, Prediction]:
    return prediction.x0, prediction


def _replaced(measurement: Measurement, process: Process, x: Array, y: Array, s: Array, z: Array) -> Array:
    """x with A x drawn anew: alpha_s y and noise, together of variance sigma_s^2 A A^T about alpha_s A x0."""
    left = _spare_variance(measurement, process, s)
    noise = measurement.spectral(measurement.forward(z), lambda s2: jnp.sqrt(jnp.maximum(left(s2), 0)))
    inverse = lambda s2: _ratio(jnp.ones_like(s2), s2, (s2 > SMALL * jnp.max(s2)) & (left(s2) >= 0))  # noqa: E731
    return x + measurement.adjoint(measurement.spectral(process.alpha(s) * y + noise - measurement.forward(x), inverse))


def _not_replaced(measurement: Measurement, process: Process, x: Array, other: Array, s: Array) -> Array:
    """x with those measured directions of `other` that `_replaced` leaves alone at time s."""
    if measurement.std == 0:
        return x
    left = _spare_variance(measurement, process, s)
    inverse = lambda s2: _ratio(jnp.ones_like(s2), s2, (s2 > SMALL * jnp.max(s2)) & (left(s2) < 0))  # noqa: E731
    return x + measurement.adjoint(measurement.spectral(measurement.forward(other - x), inverse))


def _spare_variance(measurement: Measurement, process: Process, s: Array) -> Callable[[Array], Array]:
    """(s2) -> sigma_s^2 - (alpha_s std)^2 / s2: the variance that x_s has in a measured direction beyond that of alpha_s y."""
    alpha, sigma = process.alpha(s), process.sigma(s)
    return lambda s2: sigma**2 - _ratio((alpha * measurement.std) ** 2, s2, s2 > SMALL * jnp.max(s2))


def _between(process: Process, t: Array, s: Array, jump: int) -> Array:
    """t = times[0] > ... > times[jump] = s, in equal steps of the log-SNR."""
    ends = jnp.stack([t, s])
    lam = gaussian.logsnr(process, ends)
    inner = gaussian.time_of_logsnr(process, lam[0] + jnp.arange(1, jump) / jump * (lam[1] - lam[0]))
    return jnp.concatenate([ends[:1], inner.astype(ends.dtype), ends[1:]])


def _numbered(noise: Noise, first: Array) -> Noise:
    """Independent draws for a move that is not the grid's: from `first` on."""
    return Noise(lambda t, s, part=0: noise.extra(first + part), lambda i: noise.extra(first + 8 + i))


# ---- the truth, for mixtures -----------------------------------------------------------------------------------------------


class Posterior(NamedTuple):
    """p(x0 | y) for mixture data, a mixture again: weights (B, K), means (B, K, D), covariances (K, D, D)."""

    weights: Array
    means: Array
    covariances: Array


def posterior(law: targets.Mixture, matrix: Array, variance: Array, y: Array) -> Posterior:
    """The law of x0 given y (B, M) = matrix (M, D) x0 + N(0, diag(variance)), variance (M,) or a number.

    With S = A C A^T + N and G = C A^T S^-1: means m + G (y - A m), covariances C - G A C, weights proportional to w N(y; A m, S).
    """
    precise = {"precision": "highest"}
    spread_to_y = law.variances[:, :, None] * matrix.T  # C A^T, (K, D, M)
    total = jnp.einsum("md,kdn->kmn", matrix, spread_to_y, **precise)
    total = total + jnp.diag(jnp.broadcast_to(jnp.asarray(variance, y.dtype), y.shape[1:]))
    root = jnp.linalg.cholesky(total)
    offset = y[:, None] - jnp.einsum("md,kd->km", matrix, law.means, **precise)  # (B, K, M)
    white = jax.vmap(lambda r, b: jax.scipy.linalg.solve_triangular(r, b.T, lower=True).T, (0, 1), 1)(root, offset)
    half_gain = jax.vmap(lambda r, c: jax.scipy.linalg.solve_triangular(r, c.T, lower=True))(root, spread_to_y)  # (K, M, D)
    logit = jnp.log(law.weights) - 0.5 * jnp.sum(white**2, -1) - jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), -1)
    means = law.means + jnp.einsum("bkm,kmd->bkd", white, half_gain, **precise)
    covariances = jax.vmap(jnp.diag)(law.variances) - jnp.einsum("kmd,kme->kde", half_gain, half_gain, **precise)
    return Posterior(jax.nn.softmax(logit), means, covariances)


def posterior_moments(exact: Posterior) -> tuple[Array, Array]:
    """Mean (B, D) and variance of each coordinate (B, D)."""
    mean = jnp.einsum("bk,bkd->bd", exact.weights, exact.means, precision="highest")
    within = jnp.diagonal(exact.covariances, axis1=1, axis2=2)
    return mean, jnp.einsum("bk,bkd->bd", exact.weights, within + (exact.means - mean[:, None]) ** 2, precision="highest")


def draw_posterior(exact: Posterior, keys: Key) -> Array:
    """One draw for each y, (B, D), from keys (B,) (or one key)."""
    keys = arrays.example_keys(keys, len(exact.weights))
    k = jax.vmap(lambda key, w: jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(w)))(keys, exact.weights)
    values, basis = jnp.linalg.eigh(exact.covariances)
    root = basis * jnp.sqrt(jnp.maximum(values, 0))[:, None]
    z = arrays.noise(arrays.fold_in(keys, 0), exact.means[:, 0])
    mean = jnp.take_along_axis(exact.means, k[:, None, None], 1)[:, 0]
    return mean + jnp.einsum("bde,be->bd", root[k], z, precision="highest")


def conditional(law: targets.Mixture, process: Process, matrix: Array, std: float, y: Array) -> Denoise:
    """E[x0 | x_t, y], exactly: x_t / alpha is one more measurement of x0, of variance (sigma / alpha)^2. t scalar."""

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        alpha, u2 = process.alpha(t), (process.sigma(t) / process.alpha(t)) ** 2
        both = jnp.concatenate([matrix, jnp.eye(law.means.shape[1], dtype=x_t.dtype)])
        variance = jnp.where(jnp.arange(len(both)) < len(matrix), std**2, u2)
        mean, _ = posterior_moments(posterior(law, both, variance, jnp.concatenate([y, x_t / alpha], 1)))
        return gaussian.from_x0(process, x_t, mean, t)

    return denoise


# ---- edits: what a deterministic sampler's way to the noise and back is good for -------------------------------------------


def slerp(a: Array, b: Array, weight: float | Array) -> Array:
    """Spherical interpolation of noises (Shoemake 1985), each example on its own circle; a at weight 0, b at 1. (B, ...)."""
    dot = arrays.sum_per_example(a * b) * jax.lax.rsqrt(arrays.sum_per_example(a**2) * arrays.sum_per_example(b**2))
    near = 1 - jnp.abs(dot) < 1e-6  # parallel: the straight line is the limit
    angle = jnp.arccos(jnp.where(near, 0.0, dot))
    parts = [jnp.where(near, w, jnp.sin(w * angle) / jnp.sin(angle)) for w in (1 - weight, weight)]
    return expand(parts[0], a) * a + expand(parts[1], b) * b


def interpolate(sampler: Sampler, denoise: Denoise, process: Process, a: Array, b: Array, weights: Array, ts: Array,
                conds: tuple[Cond, Cond] = (None, None)) -> Array:
    """Images on the way from a to b (B, ...): slerp between their encodings, decoded (Song et al. 2021, DDIM, sec. 5.3).

    conds: of a and of b; an image on the way has that of the nearer end. Returns (W, B, ...).
    """
    noises = [base.encode(sampler, denoise, process, x0, ts, cond) for x0, cond in zip((a, b), conds)]
    return blend(sampler, denoise, process, jax.random.key(0), *noises, weights, ts, conds)


def blend(sampler: Sampler, denoise: Denoise, process: Process, keys: Key, a: Array, b: Array, weights: Array, ts: Array,
          conds: tuple[Cond, Cond] = (None, None)) -> Array:
    """Images of the slerps between the starts a and b (B, ...), x at ts[0], with the keys (of a stochastic sampler) the same all the way.

    So consistency models, whose samplers cannot encode, interpolate between their own images (Song et al. 2023, sec. 6.3).
    conds, and what is returned: as `interpolate`.
    """

    def decode(weight):
        cond = jax.tree.map(lambda p, q: jnp.where(weight < 0.5, p, q), *conds)
        return base.sample(sampler, denoise, process, keys, slerp(a, b, weight), ts, cond)

    return jax.lax.map(decode, jnp.asarray(weights))


def translate(sampler: Sampler, denoise: Denoise, process: Process, x0: Array, ts: Array, source: Cond, target: Cond) -> Array:
    """The noise of x0 under one condition, decoded under another (Su et al. 2023, dual diffusion implicit bridges)."""
    noise = base.encode(sampler, denoise, process, x0, ts, source)
    return base.sample(sampler, denoise, process, jax.random.key(0), noise, ts, target)


def sdedit(sampler: Sampler, denoise: Denoise, process: Process, key: Key, guide: Array, ts: Array, cond: Cond = None) -> Array:
    """SDEdit (Meng et al. 2022, algorithm 1): the guide (B, ...), noised to time ts[0], is denoised by any sampler."""
    keys = arrays.example_keys(key, len(guide))
    eps = arrays.noise(arrays.fold_in(keys, 0x7FFFFFFF), guide)
    return base.sample(sampler, denoise, process, keys, process.alpha(ts[0]) * guide + process.sigma(ts[0]) * eps, ts, cond)


def part_of(ts: Array, strength: float) -> Array:
    """The last `strength` of a grid's moves, at least one. UserError outside (0, 1]."""
    if not 0 < strength <= 1:
        raise UserError(f"strength={strength} of SDEdit: the share of the moves that are made, above 0 and at most 1")
    return ts[-(1 + max(1, round(strength * (len(ts) - 1)))) :]
