"""Guidance strategies that a config may name in config.sampler.guide.

    cfg()                                     cfg(rescale=0.7)
    apg(norm_threshold=5.0)                   cfg_zero(zero_init=0.04)
    autoguidance(ema="5k")                    autoguidance(workdir="runs/small")
    pag()                                     slg(blocks=("block_7", "block_8"))
    cfg_with(pag(), scale=3.0)                cfg_with(interval(slg(...), high=3.0), scale=2.8)
    interval(low=0.3, high=3.0)               interval(autoguidance(step=300), high=3.0)
    classifier(workdir="runs/digits_classifier")    mean_shift(workdir="runs/digits_classifier")

The mathematics is in guidance.py, combined.py and projected.py. The scale is not part of a guide:
it is config.sampler.guidance, a traced number, so that one compiled program serves every scale. A
guide may need further trained networks. It only names them (`AuxiliaryModel`); the assembly loads
them and passes them in a `GuidanceContext`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Cond, Denoise, Prediction, Process
from diffusion_jax.denoisers import combined, guidance, projected
from diffusion_jax.denoisers.combined import Difference
from diffusion_jax.denoisers.guidance import LogProb
from diffusion_jax.denoisers.strategy import AuxiliaryModel, GuidanceContext, Guide


def cfg(rescale: float = 0.0) -> Guide:
    """Classifier-free guidance (Ho & Salimans 2022) of conditional models.

    Args:
      rescale: strength of the contrast correction of Lin et al. (2024), in [0, 1].

    Returns:
      The guide. Its scale is 0 for the unconditional and 1 for the conditional model.

    Raises:
      UserError: if `rescale` is out of range.
    """
    need_ranges("cfg", rescale=(rescale, 0, 1))

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        pair = guidance.conditional_pair(denoise, context.null)
        return _extrapolated(pair, scale, context, rescale)

    return Guide(apply, condition="any", null=True)


def apg(eta: float = 0.0, norm_threshold: float = float("inf")) -> Guide:
    """Adaptive projected guidance (Sadat et al. 2024) of conditional models, for large scales.

    Args:
      eta: factor of the part along the conditional prediction, in [0, 1]; 1 without a limit is
        `cfg`.
      norm_threshold: the largest norm of the difference of the two predictions of x0, over all
        values of an image; the paper has 2.5 to 15 for latents.

    Returns:
      The guide. Its scale is 1 for the conditional model.

    Raises:
      UserError: if a number is out of range.
    """
    need_ranges("apg", eta=(eta, 0, 1))
    if not norm_threshold > 0:
        raise UserError(
            f"apg(norm_threshold={norm_threshold:g}): it must be above 0; inf is no limit"
        )

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        pair = guidance.conditional_pair(denoise, context.null)
        return projected.apg(pair, scale, context.process, eta, norm_threshold)

    return Guide(apply, condition="any", null=True)


def cfg_zero(zero_init: float = 0.04) -> Guide:
    """CFG-Zero* (Fan et al. 2025) of conditional models, for deterministic samplers of flows.

    Args:
      zero_init: fraction of the time, at its noise end, in which x_t does not move, in [0, 1). On
        equal times it is the fraction of the steps, rounded up; the paper has 0.04.

    Returns:
      The guide. Its scale is 1 for the conditional model, which it is only with zero_init=0.

    Raises:
      UserError: if `zero_init` is out of range.
    """
    need_ranges("cfg_zero", zero_init=(zero_init, 0, 0.999))

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        pair = guidance.conditional_pair(denoise, context.null)
        return projected.cfg_zero(pair, scale, context.process)

    guide = Guide(apply, condition="any", null=True)
    if not zero_init:
        return guide
    return guide._replace(
        neutral=None, still=lambda process, t: projected.in_first_part(process, zero_init)(t)
    )


def autoguidance(workdir: str = "", ema: str = "", step: int = 0, rescale: float = 0.0) -> Guide:
    """Autoguidance (Karras et al. 2024): leads away from a worse model.

    At least one of workdir, ema and step names the worse model.

    Args:
      workdir: the workdir of the worse model; '' is the run itself.
      ema: the average of the worse model's weights, such as '5k', or 'params' for the raw weights.
      step: the training step of the worse model's checkpoint; 0 is the newest.
      rescale: strength of the contrast correction of Lin et al. (2024), in [0, 1].

    Returns:
      The guide. Its scale is 1 for the model itself.

    Raises:
      UserError: if no worse model is named or a number is out of range.
    """
    need_ranges("autoguidance", step=(step, 0, 10**9), rescale=(rescale, 0, 1))
    if not (workdir or ema or step):
        raise UserError(
            "autoguidance() needs a worse model: workdir='runs/small', ema='5k' or 'params', "
            "or step=300"
        )
    worse = AuxiliaryModel(workdir, ema, step)

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        pair = guidance.model_pair(denoise, context.denoiser(worse))
        return _extrapolated(pair, scale, context, rescale)

    return Guide(apply, (worse,), away=lambda context: combined.difference(context.denoiser(worse)))


def pag(blocks: tuple[str, ...] = ("middle_attention",)) -> Guide:
    """Perturbed-attention guidance (Ahn et al. 2024): away from identity attention maps.

    The worse model is the network itself, in which each token of the named blocks attends to itself
    alone. Unconditional models are served too.

    Args:
      blocks: names of self-attention blocks: 'middle_attention', 'down_1_0_attention', ... of a
        U-Net, 'middle_1', ... of EDM2's, 'block_0', ... of a DiT.

    Returns:
      The guide. Its scale is 1 for the model itself; the paper's scale s is 1 + s here.

    Raises:
      UserError: if no block is named.
    """
    return _perturbed(blocks, "identity_attention")


def slg(blocks: tuple[str, ...] = ("middle_attention",)) -> Guide:
    """Skip-layer guidance (Stability AI 2024, Stable Diffusion 3.5): away from missing layers.

    The worse model is the network itself without the named blocks. Unconditional models are served
    too. interval(slg(...), ...) limits it to some noise levels, as the authors do.

    Args:
      blocks: names of self-attention blocks, as for `pag`.

    Returns:
      The guide. Its scale is 1 for the model itself.

    Raises:
      UserError: if no block is named.
    """
    return _perturbed(blocks, "skipped")


def _perturbed(blocks: tuple[str, ...], how: str) -> Guide:
    """The guide that leads away from the network with perturbed blocks. UserError for none."""
    if not blocks:
        raise UserError("pag and slg need a block to perturb, such as blocks=('middle_attention',)")

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        return guidance.autoguidance(denoise, context.perturbed(blocks, how), scale)

    return Guide(apply, away=lambda context: combined.difference(context.perturbed(blocks, how)))


def cfg_with(second: Guide = pag(), scale: float = 3.0) -> Guide:
    """Classifier-free guidance and another guide (Ahn et al. 2024, section 5; SD 3.5 with slg).

        unconditional + w (conditional - unconditional) + scale (conditional - worse)

    The worse model has the condition, and is evaluated besides the two.

    Args:
      second: the guide whose worse model is led away from: `pag`, `slg` or `autoguidance`, which an
        `interval` may limit.
      scale: its scale s, which is 0 without it; 1 + s on its own.

    Returns:
      The guide, whose scale w is that of `cfg`.

    Raises:
      UserError: for a second guide without a worse model, and for a scale that is out of range.
    """
    need_ranges("cfg_with", scale=(scale, 0, 1000))
    if not isinstance(second, Guide) or not second.away or second.condition:
        raise UserError(
            "cfg_with(second, ...): the second guide leads away from a worse model of the same "
            "condition; use pag(), slg() or autoguidance(...), also within interval(...)"
        )

    def apply(denoise: Denoise, w: Array, context: GuidanceContext) -> Denoise:
        pair = guidance.conditional_pair(denoise, context.null)
        return combined.with_second(pair, w, second.away(context), scale)

    return Guide(apply, second.needs, neutral=None, condition="any", null=True, away=second.away)


def classifier(
    workdir: str, conditional: bool = False, ema: str = "", against: int | None = None
) -> Guide:
    """Classifier guidance (Dhariwal & Nichol 2021, sec. 4) by a classifier of noised images.

    By default the gradient is added to the unconditional half of the model, for which scale 1 is
    Bayes' rule.

    Args:
      workdir: a workdir of experiments.train_classifier.
      conditional: adds the gradient to the conditional half instead, which is then scale 0. This
        gives Dhariwal & Nichol's best models.
      ema: the average of the classifier's weights.
      against: a class z. The gradient is then that of the log-ratio of label and z, and it is added
        to the model conditioned on z.

    Returns:
      The guide.
    """

    def apply(
        denoise: Denoise, context: GuidanceContext, log_prob: LogProb, scale: Array
    ) -> Denoise:
        return guidance.classifier(denoise, context.process, log_prob, scale)

    return _by_classifier(apply, AuxiliaryModel(workdir, ema), conditional, against)


def mean_shift(workdir: str, conditional: bool = False, ema: str = "") -> Guide:
    """Classifier guidance by a shift of the mean (Dhariwal & Nichol 2021, algorithm 1).

    It needs the sampler ancestral.ddpm; under its variance 'learned' it is that of ADM. The other
    arguments, and the scale, are those of `classifier`.

    Args:
      workdir: a workdir of experiments.train_classifier.
      conditional: shifts the mean of the conditional model; its scale 0 is that model.
      ema: the average of the classifier's weights.

    Returns:
      The guide.
    """

    def apply(
        denoise: Denoise, context: GuidanceContext, log_prob: LogProb, scale: Array
    ) -> Denoise:
        return guidance.mean_shift(denoise, log_prob, scale)

    guide = _by_classifier(apply, AuxiliaryModel(workdir, ema), conditional)
    return guide._replace(shifts_mean=True)


def _by_classifier(
    along: Callable[[Denoise, GuidanceContext, LogProb, Array], Denoise],
    other: AuxiliaryModel,
    conditional: bool,
    against: int | None = None,
) -> Guide:
    """The guide that leads half of a model along the gradient of a classifier."""

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        def base(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            if against is not None:
                return denoise(x_t, t, cond | {"label": jnp.full_like(cond["label"], against)})
            return denoise(x_t, t, cond if conditional else context.null(cond))

        log_prob = guidance.class_log_prob(context.classifier(other), against)
        return along(base, context, log_prob, scale)

    neutral = 0.0 if conditional and against is None else None
    null = not conditional and against is None
    return Guide(apply, (other,), neutral=neutral, condition="label", null=null)


def interval(guide: Guide = cfg(), low: float = 0.0, high: float = float("inf")) -> Guide:
    """Limits another guide to an interval of noise levels (Kynkaanniemi et al. 2024).

    Outside the interval the model is not guided and costs one evaluation.

    Args:
      guide: the guide inside the interval.
      low: lower end of the interval of sigma / alpha, excluded.
      high: upper end of the interval of sigma / alpha, included.

    Returns:
      The guide that is limited to the interval.

    Raises:
      UserError: if the interval is empty or the first argument is not a guide.
    """
    need_ranges("interval", low=(low, 0, 1e6))
    if not isinstance(guide, Guide):
        raise UserError(
            f"interval({guide}, ...): the first argument is another guide; "
            "write interval(low=0.2, high=3.0)"
        )
    if not low < high:
        raise UserError(
            f"interval(low={low:g}, high={high:g}) is empty; noise levels are sigma / alpha, "
            "and low must be below high"
        )

    def apply(denoise: Denoise, scale: Array, context: GuidanceContext) -> Denoise:
        guided = guide.apply(denoise, scale, context)
        plain = _without_shift(denoise) if guide.shifts_mean else denoise
        return guidance.interval(guided, plain, context.process, low, high)

    still = None
    if guide.still:

        def still(process: Process, t: Array) -> Array:
            return guidance.inside(process, t, low, high) & guide.still(process, t)

    away = None
    if guide.away:

        def away(context: GuidanceContext) -> Difference:
            own = guide.away(context)
            return combined.difference_inside(own, context.process, low, high)

    return guide._replace(apply=apply, still=still, away=away)


def _without_shift(denoise: Denoise) -> Denoise:
    """The denoiser with a shift of the mean that is 0, of the structure of a shifted one."""

    def plain(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        return denoise(x_t, t, cond)._replace(mean_shift=jnp.zeros_like(x_t))

    return plain


def _extrapolated(
    pair: guidance.PredictionPair, scale: Array, context: GuidanceContext, rescale: float
) -> Denoise:
    """The denoiser that leads away from the worse prediction, with or without `rescale`."""
    if rescale:
        return guidance.rescale(pair, scale, context.process, rescale)
    return guidance.extrapolate(pair, scale)


# The members of the family, which a config may name.
GUIDES = (cfg, apg, cfg_zero, autoguidance, pag, slg, cfg_with, classifier, mean_shift, interval)
