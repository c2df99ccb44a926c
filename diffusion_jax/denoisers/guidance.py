"""Guidance and thresholding: functions from denoisers to a denoiser, which work under every sampler
and compose by calling.

    guided = cfg(denoise, scale, null)                              two halves of one network
    guided = autoguidance(denoise, worse, scale)                    two networks
    guided = classifier(unconditional, process, log_prob, scale)    the gradient of log p(y | x_t)
    guided = interval(guided, denoise, process, low, high)          only at some noise levels
    guided = clip_x0(guided, process)                               and then thresholding

A scale may be traced: one compiled program serves a sweep. Everything here is of the score (or,
what is the same, of x0-hat and eps-hat), so it holds under every process and parameterization, and
x_t = alpha x0 + sigma eps goes on to hold exactly. What a config may name of this, and how, is
guides.py.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.arrays import expand, tree_lerp
from diffusion_jax.errors import UserError
from diffusion_jax.processes.gaussian import with_x0
from diffusion_jax.types import Array, Cond, Denoise, Prediction, Process

Pair = Callable[
    ..., tuple[Prediction, Prediction]
]  # (x_t, t, cond) -> the prediction, and the one to be led away from

LogProb = Callable[
    [Array, Array, Cond], Array
]  # (x_t, t, cond) -> log p(cond | x_t) up to what does not depend on x_t, (B,)


# ---- away from a worse prediction
def cfg(denoise: Denoise, scale: float | Array, null: Callable[[Cond], Cond]) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): unconditional + scale (conditional -
    unconditional).

    scale 0 is unconditional, 1 conditional, above 1 exaggerates the condition. null(cond) -> the
    condition that says nothing (or a negative one), of cond's structure. Both passes are one
    batched call of twice the batch.
    """
    return extrapolate(conditional_pair(denoise, null), scale)


def autoguidance(denoise: Denoise, worse: Denoise, scale: float | Array) -> Denoise:
    """Away from a worse model of the same thing (Karras et al. 2024): worse + scale (denoise -
    worse), under one condition.

    worse: a smaller or less trained network, an earlier checkpoint, a shorter EMA. scale 1 is
    denoise itself. Unlike cfg it does not trade diversity for the condition, and serves
    unconditional models.
    """
    return extrapolate(model_pair(denoise, worse), scale)


def conditional_pair(denoise: Denoise, null: Callable[[Cond], Cond]) -> Pair:
    """The predictions under cond and under null(cond), by one call of twice the batch."""

    def pair(x_t: Array, t: Array, cond: Cond = None) -> tuple[Prediction, Prediction]:
        batch = x_t.shape[0]
        t = jnp.broadcast_to(t, (batch,))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null(cond))
        prediction = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        return jax.tree.map(lambda p: p[:batch], prediction), jax.tree.map(
            lambda p: p[batch:], prediction
        )

    return pair


def model_pair(denoise: Denoise, worse: Denoise) -> Pair:
    """The predictions of two denoisers."""
    return lambda x_t, t, cond=None: (denoise(x_t, t, cond), worse(x_t, t, cond))


def extrapolate(pair: Pair, scale: float | Array) -> Denoise:
    """worse + scale (better - worse), in x0 and eps alike.

    A learned variance is interpolated but never extrapolated, as nu outside [-1, 1] is no variance
    between beta-tilde and beta; where the worse model learned none, it is the better one's.
    """
    return lambda x_t, t, cond=None: _mixed(*pair(x_t, t, cond), scale)


def rescale(pair: Pair, scale: float | Array, process: Process, strength: float = 0.7) -> Denoise:
    """`extrapolate`, against the over-exposure of large scales (Lin et al. 2024, eq. 15-16), in
    x0-hat:

        x0 <- strength (std(x0-better) / std(x0-guided)) x0-guided + (1 - strength) x0-guided,

    the standard deviations over each image. strength 0 is `extrapolate`; 1 keeps the contrast that
    was there without guidance. (Theirs rescales the network's output v; x0-hat is the same under
    every parameterization.)
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        better, worse = pair(x_t, t, cond)
        mixed = _mixed(better, worse, scale)
        factor = 1 + strength * (_std(better.x0) / jnp.maximum(_std(mixed.x0), 1e-12) - 1)
        return with_x0(process, mixed, x_t, expand(factor, x_t) * mixed.x0, t)

    return guided


def _mixed(better: Prediction, worse: Prediction, scale: float | Array) -> Prediction:
    x0, eps = tree_lerp(worse[:2], better[:2], scale)
    if better.nu is None or worse.nu is None:
        return better._replace(x0=x0, eps=eps)
    return better._replace(
        x0=x0, eps=eps, nu=tree_lerp(worse.nu, better.nu, jnp.clip(scale, 0.0, 1.0))
    )


def _std(x: Array) -> Array:
    """Of each image, (B,); its gradient at a constant image is 0, not 0 / 0."""
    return jnp.sqrt(jnp.maximum(jnp.var(x.reshape(x.shape[0], -1), axis=1), 1e-24))


def interval(
    guided: Denoise, denoise: Denoise, process: Process, low: float | Array, high: float | Array
) -> Denoise:
    """`guided` where low < sigma / alpha <= high, else `denoise` (Kynkaanniemi et al. 2024).

    sigma / alpha is EDM's sigma, the same noise level under every process: a log-SNR of -2
    log(sigma / alpha). For a scalar t, as samplers give it, only one of the two runs: outside of
    the interval guidance costs nothing.
    """

    def inside(t: Array) -> Array:
        level = process.sigma(t) / process.alpha(t)
        return (low < level) & (level <= high)

    def either(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        t = jnp.asarray(t)
        if t.ndim == 0:
            return jax.lax.cond(inside(t), guided, denoise, x_t, t, cond)

        def choose(a, b):
            return jnp.where(expand(inside(t), a), a, b)

        return jax.tree.map(choose, guided(x_t, t, cond), denoise(x_t, t, cond))

    return either


# ---- along a gradient
def classifier(
    denoise: Denoise, process: Process, log_prob: LogProb, scale: float | Array
) -> Denoise:
    """Classifier guidance (Dhariwal & Nichol 2021, sec. 4): the score plus scale grad_x_t log p(y |
    x_t).

    At scale 1 on an unconditional denoiser this is Bayes' rule, the exact conditional denoiser of
    an exact classifier. With log_prob the log-ratio log p(y | x_t) - log p(z | x_t) the same holds
    for a denoiser of z, which becomes one of y. See `class_log_prob`, which makes both from logits.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        slope = jax.grad(lambda x: jnp.sum(log_prob(x, t, cond)))(x_t)
        return _with_score(process, denoise(x_t, t, cond), t, scale * slope)

    return guided


def class_log_prob(logits: Callable[[Array, Array], Array], against: int | None = None) -> LogProb:
    """(x_t, t, cond) -> log p(label | x_t), (B,), of a classifier's logits(x_t, t) (B, classes),
    for cond = {'label': (B,)}.

    against: a class z makes it the log-ratio log p(label | x_t) - log p(z | x_t). A label beyond
    the classes is 'any': 0. UserError, when traced, where there is no label, or no class z.
    """

    def log_prob(x_t: Array, t: Array, cond: Cond) -> Array:
        if not cond or "label" not in cond:
            raise UserError(
                "guidance by a classifier needs to be told a label, and this model has none"
            )
        log_p, label = jax.nn.log_softmax(logits(x_t, t)), cond["label"]
        classes = log_p.shape[-1]
        if against is not None and not 0 <= against < classes:
            raise UserError(
                f"against={against} does not exist: the classifier knows 0 to {classes - 1}"
            )
        own = jnp.take_along_axis(log_p, jnp.clip(label, 0, classes - 1)[:, None], 1)[:, 0]
        own = own if against is None else own - log_p[:, against]
        return jnp.where((label >= 0) & (label < classes), own, 0.0)

    return log_prob


def energy(
    denoise: Denoise, process: Process, function: Callable[..., Array], scale: float | Array = 1.0
) -> Denoise:
    """Samples of p(x0) exp(-scale E(x0)), about: the score minus scale grad_x_t E(x0-hat(x_t)), for
    any differentiable E.

    function(x0, t, cond) -> E, (B,). The gradient runs through the denoiser: about three times its
    cost. The exact term is log E[exp(-scale E(x0)) | x_t], of which this is the first order (Chung
    et al. 2023, eq. 11; Yu et al. 2023): exact where E is linear and the data Gaussian, or wherever
    t enters E as the posterior's variance asks; an approximation otherwise, which is coarse at high
    noise and good at low.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        def total(x):
            prediction = denoise(x, t, cond)
            return jnp.sum(function(prediction.x0, t, cond)), prediction

        slope, prediction = jax.grad(total, has_aux=True)(x_t)
        return _with_score(process, prediction, t, -scale * slope)

    return guided


def _with_score(process: Process, prediction: Prediction, t: Array, more: Array) -> Prediction:
    """The prediction whose score has `more` (B, ...) added: eps - sigma more, and so x0 + sigma^2 /
    alpha more.
    """
    alpha, sigma = expand(process.alpha(t), more), expand(process.sigma(t), more)
    return prediction._replace(
        x0=prediction.x0 + sigma**2 / alpha * more, eps=prediction.eps - sigma * more
    )


# ---- thresholding
def clip_x0(denoise: Denoise, process: Process, low: float = -1.0, high: float = 1.0) -> Denoise:
    """x0-hat clipped to the data's range, eps-hat to match (Ho et al. 2020's code; DDIM's
    'clip_denoised').

    A prediction that is given where the move ends, cond['to'], is left as it is: it is the average
    velocity of MeanFlow as a pair (x0, eps), whose x0 is an average over the move, outside of the
    data's range where guidance is part of what was learned. The last move, which is given nothing,
    ends in x0-hat and is clipped.
    """
    return _with_x0(denoise, process, lambda x0: jnp.clip(x0, low, high))


def dynamic_threshold(denoise: Denoise, process: Process, percentile: float = 99.5) -> Denoise:
    """Imagen's dynamic thresholding (Saharia et al. 2022, sec. 2.3): clip x0-hat to [-s, s] and
    divide by s, where s is this percentile of each image's |x0-hat|, at least 1. A prediction that
    is given where the move ends is left as it is (`clip_x0`).
    """

    def squeeze(x0: Array) -> Array:
        s = jnp.percentile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x0)
        return jnp.clip(x0, -s, s) / s

    return _with_x0(denoise, process, squeeze)


def _with_x0(denoise: Denoise, process: Process, change) -> Denoise:
    """The denoiser whose x0-hat is change(x0-hat), with the eps that x_t then implies; average
    velocities are left as they are.
    """

    def changed(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        prediction = denoise(x_t, t, cond)
        if isinstance(cond, dict) and "to" in cond:
            return prediction
        return with_x0(process, prediction, x_t, change(prediction.x0), t)

    return changed


def without_end_time(denoise: Denoise) -> Denoise:
    """The denoiser without cond['to'], for networks that have no second time: under few_step.jump
    it is then DDIM, thresholded or not.
    """

    def untold(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        if isinstance(cond, dict) and "to" in cond:
            cond = {name: value for name, value in cond.items() if name != "to"} or None
        return denoise(x_t, t, cond)

    return untold
