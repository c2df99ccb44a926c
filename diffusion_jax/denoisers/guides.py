"""Guidance by name: what config.sampler.guide may say. The mathematics is in guidance.py.

    'cfg()'  'cfg(rescale=0.7)'  'interval(low=0.3, high=3.0)'  'autoguidance(ema="5k")'  'autoguidance(workdir="runs/small")'
    'classifier(workdir="runs/digits_classifier")'  'interval(autoguidance(step=300), high=3.0)'

The scale is not part of a guide: it is config.sampler.guidance, traced, so that one compiled
program serves every scale. A guide may need other trained networks (AuxiliaryModel). It only names them; the
roof loads them and hands them over in a GuidanceContext.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.denoisers import guidance
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.types import Array, Cond, Denoise, Process


class AuxiliaryModel(NamedTuple):
    """A trained network. workdir '': the run itself; ema '': what config.sampler.ema says there;
    step 0: the newest.
    """

    workdir: str = ""
    ema: str = ""
    step: int = 0


class GuidanceContext(NamedTuple):
    """What a guide works with: the path; null(cond), None for an unconditional model; the other
    networks, by name.
    """

    process: Process
    null: Callable[[Cond], Cond] | None
    denoiser: Callable[[AuxiliaryModel], Denoise]
    classifier: Callable[
        [AuxiliaryModel], Callable[[Array, Array], Array]
    ]  # -> logits(x_t, t), (B, classes)


class Guide(NamedTuple):
    """A guidance strategy: apply(denoise, scale, context) -> Denoise.

    Whether a model is guided at a scale is decided from these fields alone, by
    experiment.is_guided.

    Attributes:
      apply: turns the model's denoiser into the guided one.
      needs: the other trained networks that it uses.
      neutral: the scale at which the guided denoiser is `denoise` itself; None where there is no
        such scale.
      condition: the part of the condition that it guides by: 'any', 'label', or '' for none. Such a
        guide refuses a model without that part, and does nothing where the condition is the null
        condition.
      null: whether it evaluates the model under the null condition, which a model learns by label
        dropout alone.
    """

    apply: Callable[[Denoise, Array, GuidanceContext], Denoise]
    needs: tuple[AuxiliaryModel, ...] = ()
    neutral: float | None = 1.0
    condition: str = ""
    null: bool = False


def cfg(rescale: float = 0.0) -> Guide:
    """Classifier-free guidance (Ho & Salimans 2022), of conditional models.

    Args:
      rescale: strength of the correction of the contrast of Lin et al. (2024), in [0, 1].
    """
    need_ranges("cfg", rescale=(rescale, 0, 1))

    def apply(denoise, scale, context):
        return _extrapolated(
            guidance.conditional_pair(denoise, context.null), scale, context, rescale
        )

    return Guide(apply, condition="any", null=True)


def autoguidance(workdir: str = "", ema: str = "", step: int = 0, rescale: float = 0.0) -> Guide:
    """Away from a worse model: that of another workdir, or of this run by another average or at an
    earlier checkpoint.
    """
    need_ranges("autoguidance", step=(step, 0, 10**9), rescale=(rescale, 0, 1))
    if not (workdir or ema or step):
        raise UserError(
            "autoguidance() needs a worse model: workdir='runs/small', ema='5k' or 'params', or step=300"
        )
    other = AuxiliaryModel(workdir, ema, step)

    def apply(denoise, scale, context):
        return _extrapolated(
            guidance.model_pair(denoise, context.denoiser(other)), scale, context, rescale
        )

    return Guide(apply, (other,))


def classifier(
    workdir: str, conditional: bool = False, ema: str = "", against: int | None = None
) -> Guide:
    """By the gradient of a classifier that experiments.train_classifier made, from the
    unconditional half of the model: scale 1 is Bayes' rule. conditional: from the conditional half
    instead, which scale 0 then is (Dhariwal & Nichol's best models).
    against: a class z; from the denoiser of z by the log-ratio of label and z.
    """
    other = AuxiliaryModel(workdir, ema)

    def apply(denoise, scale, context):
        def base(x_t, t, cond=None):
            if against is not None:
                return denoise(x_t, t, cond | {"label": jnp.full_like(cond["label"], against)})
            return denoise(x_t, t, cond if conditional else context.null(cond))

        return guidance.classifier(
            base,
            context.process,
            guidance.class_log_prob(context.classifier(other), against),
            scale,
        )

    neutral = 0.0 if conditional and against is None else None
    return Guide(
        apply,
        (other,),
        neutral=neutral,
        condition="label",
        null=not conditional and against is None,
    )


def interval(guide: Guide = cfg(), low: float = 0.0, high: float = float("inf")) -> Guide:
    """Another guide, only where low < sigma / alpha <= high; elsewhere the model as it is, which
    then costs one pass.
    """
    need_ranges("interval", low=(low, 0, 1e6))
    if not isinstance(guide, Guide):
        raise UserError(
            f"interval({guide}, ...): the first argument is another guide; write interval(low=0.2, high=3.0)"
        )
    if not low < high:
        raise UserError(
            f"interval(low={low:g}, high={high:g}) is empty; noise levels are sigma / alpha, low below high"
        )

    def apply(denoise, scale, context):
        return guidance.interval(
            guide.apply(denoise, scale, context), denoise, context.process, low, high
        )

    return guide._replace(apply=apply)


def _extrapolated(
    pair: guidance.Pair, scale: Array, context: GuidanceContext, rescale: float
) -> Denoise:
    return (
        guidance.rescale(pair, scale, context.process, rescale)
        if rescale
        else guidance.extrapolate(pair, scale)
    )
