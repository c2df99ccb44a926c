"""Guidance: functions that map denoisers to a denoiser.

They work under every sampler and compose by calling:

    guided = cfg(denoise, scale, null)                              two conditions of one network
    guided = autoguidance(denoise, worse, scale)                    two networks
    guided = classifier(unconditional, process, log_prob, scale)    the gradient of log p(y | x_t)
    guided = interval(guided, denoise, process, low, high)          only at some noise levels
    guided = thresholding.clip_x0(guided, process)                  followed by thresholding

A scale may be a traced array, so that one compiled program serves a sweep over scales. Guidance
acts on the score or, equivalently, on x0-hat and eps-hat. It therefore holds under every process
and parameterization, and x_t = alpha x0-hat + sigma eps-hat remains exact. The strategies that a
config may name are in guides.py; APG and CFG-Zero* are in projected.py.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.core.arrays import expand, tree_lerp
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Prediction, Process
from diffusion_jax.processes.gaussian import with_x0

# (x_t, t, cond) -> (better prediction, worse prediction); guidance leads away from the worse one.
PredictionPair = Callable[..., tuple[Prediction, Prediction]]

# (x_t, t, cond) -> log p(cond | x_t), (B,), up to a term that does not depend on x_t.
LogProb = Callable[[Array, Array, Cond], Array]


# ---- extrapolation away from a worse prediction
def cfg(denoise: Denoise, scale: float | Array, null: Callable[[Cond], Cond]) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6).

        unconditional + scale (conditional - unconditional)

    Both predictions come from one batched call of twice the batch size.

    Args:
      denoise: a conditional denoiser that also knows the null condition.
      scale: 0 is unconditional, 1 is conditional, and values above 1 exaggerate the condition.
      null: maps a condition to the null (or a negative) condition of the same structure.

    Returns:
      The guided denoiser.
    """
    return extrapolate(conditional_pair(denoise, null), scale)


def autoguidance(denoise: Denoise, worse: Denoise, scale: float | Array) -> Denoise:
    """Autoguidance (Karras et al. 2024): leads away from a worse model of the same data.

        worse + scale (denoise - worse), both under the same condition

    In contrast to `cfg` it does not trade diversity for the condition, and it also serves
    unconditional models.

    Args:
      denoise: the denoiser to guide.
      worse: a smaller or less trained network, an earlier checkpoint, or a shorter EMA.
      scale: 1 is `denoise` itself.

    Returns:
      The guided denoiser.
    """
    return extrapolate(model_pair(denoise, worse), scale)


def conditional_pair(denoise: Denoise, null: Callable[[Cond], Cond]) -> PredictionPair:
    """Evaluates one denoiser under cond and under null(cond), in one call of twice the batch size.

    Args:
      denoise: a conditional denoiser.
      null: maps a condition to the null condition of the same structure.

    Returns:
      A function (x_t, t, cond) -> (conditional prediction, unconditional prediction).
    """

    def pair(x_t: Array, t: Array, cond: Cond = None) -> tuple[Prediction, Prediction]:
        batch = x_t.shape[0]
        t = jnp.broadcast_to(t, (batch,))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null(cond))
        prediction = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        conditional = jax.tree.map(lambda p: p[:batch], prediction)
        return conditional, jax.tree.map(lambda p: p[batch:], prediction)

    return pair


def model_pair(denoise: Denoise, worse: Denoise) -> PredictionPair:
    """Evaluates two denoisers under the same condition.

    Args:
      denoise: the better denoiser.
      worse: the denoiser to lead away from.

    Returns:
      A function (x_t, t, cond) -> (prediction of `denoise`, prediction of `worse`).
    """
    return lambda x_t, t, cond=None: (denoise(x_t, t, cond), worse(x_t, t, cond))


def extrapolate(pair: PredictionPair, scale: float | Array) -> Denoise:
    """Computes worse + scale (better - worse) for x0 and eps alike.

    A learned variance is interpolated but never extrapolated, because nu outside [-1, 1] is not a
    variance between beta-tilde and beta. If only the better model learned a variance, it is kept.

    Args:
      pair: a function (x_t, t, cond) -> (better, worse).
      scale: 1 is the better prediction.

    Returns:
      The guided denoiser.
    """
    return lambda x_t, t, cond=None: mixed(*pair(x_t, t, cond), scale)


def rescale(
    pair: PredictionPair, scale: float | Array, process: Process, strength: float = 0.7
) -> Denoise:
    """Extrapolates, then corrects the over-exposure of large scales (Lin et al. 2024, eq. 15-16).

        x0 <- strength (std(x0-better) / std(x0-guided)) x0-guided + (1 - strength) x0-guided

    The standard deviations are those of each image. The paper rescales the network's output v; this
    function rescales x0-hat, which is the same under every parameterization.

    Args:
      pair: a function (x_t, t, cond) -> (better, worse).
      scale: guidance scale, as in `extrapolate`.
      process: the process of x_t.
      strength: 0 is `extrapolate`; 1 keeps the contrast of the unguided prediction.

    Returns:
      The guided denoiser.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        better, worse = pair(x_t, t, cond)
        plain = mixed(better, worse, scale)
        factor = 1 + strength * (_std(better.x0) / jnp.maximum(_std(plain.x0), 1e-12) - 1)
        return with_x0(process, plain, x_t, expand(factor, x_t) * plain.x0, t)

    return guided


def mixed(better: Prediction, worse: Prediction, scale: float | Array) -> Prediction:
    """The prediction worse + scale (better - worse), with nu as `extrapolate` says.

    Args:
      better: the prediction at scale 1.
      worse: the prediction at scale 0, of the same shape.
      scale: guidance scale.
    """
    x0, eps = tree_lerp(worse[:2], better[:2], scale)
    if better.nu is None or worse.nu is None:
        return better._replace(x0=x0, eps=eps)
    nu = tree_lerp(worse.nu, better.nu, jnp.clip(scale, 0.0, 1.0))
    return better._replace(x0=x0, eps=eps, nu=nu)


def _std(x: Array) -> Array:
    """Standard deviation of each image, (B,); its gradient at a constant image is 0, not 0 / 0."""
    return jnp.sqrt(jnp.maximum(jnp.var(x.reshape(x.shape[0], -1), axis=1), 1e-24))


def interval(
    guided: Denoise, denoise: Denoise, process: Process, low: float | Array, high: float | Array
) -> Denoise:
    """Limits guidance to an interval of noise levels (Kynkaanniemi et al. 2024).

    The noise level is sigma / alpha, EDM's sigma, which means the same under every process; the
    log-SNR is -2 log(sigma / alpha). For a scalar t, which samplers use, only one of the two
    denoisers is evaluated, so guidance costs nothing outside the interval.

    Args:
      guided: the denoiser for low < sigma / alpha <= high.
      denoise: the denoiser for all other noise levels.
      process: the process of x_t.
      low: lower end of the interval, excluded.
      high: upper end of the interval, included.

    Returns:
      The denoiser that is guided inside the interval only.
    """

    def either(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        t = jnp.asarray(t)
        if t.ndim == 0:
            return jax.lax.cond(inside(process, t, low, high), guided, denoise, x_t, t, cond)

        def choose(a: Array, b: Array) -> Array:
            return jnp.where(expand(inside(process, t, low, high), a), a, b)

        return jax.tree.map(choose, guided(x_t, t, cond), denoise(x_t, t, cond))

    return either


def inside(process: Process, t: Array, low: float | Array, high: float | Array) -> Array:
    """Whether low < sigma / alpha <= high at a time.

    Args:
      process: the process.
      t: times, of any shape.
      low: lower end of the interval, excluded.
      high: upper end of the interval, included.

    Returns:
      bool, of the shape of t.
    """
    level = process.sigma(t) / process.alpha(t)
    return (low < level) & (level <= high)


# ---- guidance along a gradient
def classifier(
    denoise: Denoise, process: Process, log_prob: LogProb, scale: float | Array
) -> Denoise:
    """Classifier guidance (Dhariwal & Nichol 2021, sec. 4): score + scale grad_x_t log p(y | x_t).

    At scale 1 on an unconditional denoiser this is Bayes' rule: an exact classifier gives the exact
    conditional denoiser. If log_prob is the log-ratio log p(y | x_t) - log p(z | x_t), the same
    holds for a denoiser conditioned on z, which becomes one conditioned on y. `class_log_prob`
    makes both from the logits of a classifier.

    Args:
      denoise: the denoiser to guide.
      process: the process of x_t.
      log_prob: a function (x_t, t, cond) -> log p(cond | x_t), (B,).
      scale: factor of the gradient.

    Returns:
      The guided denoiser.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, t, cond)))(x_t)
        return _add_to_score(process, denoise(x_t, t, cond), t, scale * gradient)

    return guided


def mean_shift(denoise: Denoise, log_prob: LogProb, scale: float | Array) -> Denoise:
    """Classifier guidance by a shift of the mean (Dhariwal & Nichol 2021, algorithm 1).

        x_s ~ N(mean + scale var grad_x_t log p(y | x_t), var)

    Only an ancestral sampler (ancestral.ddpm) has such a mean and variance; it adds the shift,
    which the prediction holds. x0-hat and eps-hat stay those of `denoise`, and thresholding does
    not concern the shift. `classifier` shifts the score instead, under every sampler. To first
    order in the length of the step both are the same; the exact mean of x_s given x_t and y has
    the shift (alpha_s / alpha_t) beta, where beta is the variance 'large' of the sampler.

    Args:
      denoise: the denoiser to guide.
      log_prob: a function (x_t, t, cond) -> log p(cond | x_t), (B,).
      scale: factor of the gradient.

    Returns:
      The denoiser whose predictions hold the shift in units of the variance.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, t, cond)))(x_t)
        return denoise(x_t, t, cond)._replace(mean_shift=scale * gradient)

    return guided


def class_log_prob(logits: Callable[[Array, Array], Array], against: int | None = None) -> LogProb:
    """The log-probability of cond['label'] under a noise-conditional classifier.

    Args:
      logits: a function (x_t, t) -> logits, (B, classes).
      against: a class z; the result is then the log-ratio log p(label | x_t) - log p(z | x_t).

    Returns:
      A function (x_t, t, cond) -> log p(cond['label'] | x_t), (B,). It is 0 for a label outside the
      classes, which means "any class".

    Raises:
      UserError: while tracing, if the condition has no label or the class z does not exist.
    """

    def log_prob(x_t: Array, t: Array, cond: Cond) -> Array:
        if not cond or "label" not in cond:
            raise UserError(
                "guidance by a classifier needs a label as its condition, and this model has none"
            )
        log_p, label = jax.nn.log_softmax(logits(x_t, t)), cond["label"]
        classes = log_p.shape[-1]
        if against is not None and not 0 <= against < classes:
            raise UserError(
                f"against={against} does not exist: the classifier has the classes 0 to "
                f"{classes - 1}"
            )
        own = jnp.take_along_axis(log_p, jnp.clip(label, 0, classes - 1)[:, None], 1)[:, 0]
        own = own if against is None else own - log_p[:, against]
        return jnp.where((label >= 0) & (label < classes), own, 0.0)

    return log_prob


def energy(
    denoise: Denoise, process: Process, function: Callable[..., Array], scale: float | Array = 1.0
) -> Denoise:
    """Samples p(x0) exp(-scale E(x0)) approximately, for any differentiable energy E.

    The score becomes score - scale grad_x_t E(x0-hat(x_t)) (Chung et al. 2023, eq. 11; Yu et al.
    2023). The gradient passes through the denoiser, at about three times its cost. The exact
    term is log E[exp(-scale E(x0)) | x_t], of which this is the first order. It is exact where E is
    linear and the data Gaussian, or where t enters E in the way that the posterior's variance
    requires; otherwise the approximation is coarse at high noise and good at low noise.

    Args:
      denoise: the denoiser to guide.
      process: the process of x_t.
      function: the energy, a function (x0, t, cond) -> E, (B,).
      scale: factor of the energy.

    Returns:
      The guided denoiser.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        def total(x: Array) -> tuple[Array, Prediction]:
            prediction = denoise(x, t, cond)
            return jnp.sum(function(prediction.x0, t, cond)), prediction

        gradient, prediction = jax.grad(total, has_aux=True)(x_t)
        return _add_to_score(process, prediction, t, -scale * gradient)

    return guided


def _add_to_score(process: Process, prediction: Prediction, t: Array, added: Array) -> Prediction:
    """Adds `added` (B, ...) to the score: eps - sigma added, hence x0 + sigma^2 / alpha added."""
    alpha, sigma = expand(process.alpha(t), added), expand(process.sigma(t), added)
    return prediction._replace(
        x0=prediction.x0 + sigma**2 / alpha * added, eps=prediction.eps - sigma * added
    )
