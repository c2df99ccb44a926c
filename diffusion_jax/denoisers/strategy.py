"""What a strategy of guidance is, of which guides.py has the members, and what it works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.core.types import Array, Cond, Denoise, Process
from diffusion_jax.denoisers.combined import Difference


class AuxiliaryModel(NamedTuple):
    """The name of a trained network that a guide needs besides the model itself.

    Attributes:
      workdir: where it was trained; '' is the run itself.
      ema: which average of the weights; '' is the one that config.sampler.ema names there.
      step: the training step of its checkpoint; 0 is the newest.
    """

    workdir: str = ""
    ema: str = ""
    step: int = 0


class GuidanceContext(NamedTuple):
    """The inputs of a guide besides the model's denoiser and the scale.

    Attributes:
      process: the process of x_t.
      null: maps a condition to the null condition; None for an unconditional model.
      denoiser: the denoiser of an auxiliary model.
      classifier: the logits of an auxiliary classifier, a function (x_t, t) -> (B, classes).
      perturbed: the denoiser of the model's own network with some of its self-attention blocks
        perturbed, a function of their names and of 'identity_attention' or 'skipped'.
    """

    process: Process
    null: Callable[[Cond], Cond] | None
    denoiser: Callable[[AuxiliaryModel], Denoise]
    classifier: Callable[[AuxiliaryModel], Callable[[Array, Array], Array]]
    perturbed: Callable[[tuple[str, ...], str], Denoise]


class Guide(NamedTuple):
    """A guidance strategy.

    Whether a model is guided at a scale is decided from these fields alone, by
    assembly/denoiser.is_guided.

    Attributes:
      apply: a function (denoise, scale, context) -> the guided denoiser.
      needs: the auxiliary models that it uses.
      neutral: the scale at which the guided denoiser is `denoise` itself; None where there is no
        such scale.
      condition: the part of the condition that it guides by: 'any', 'label', or '' for none. A
        guide with a condition refuses a model without that part, and does nothing where the
        condition is the null condition.
      null: whether it evaluates the model under the null condition, which a model learns only
        through label dropout.
      shifts_mean: whether its predictions hold a shift of the mean, which needs an ancestral
        sampler.
      away: context -> the difference of the model to the worse one that it leads away from
        (combined.Difference), for `guides.cfg_with`; None where there is no such model. A guide
        with a condition that has it leads away where the condition is the null condition too.
      still: (process, t) -> whether x_t does not move at the time t, (shape of t) bool, which
        projected.still does after thresholding; None: it always moves.
    """

    apply: Callable[[Denoise, Array, GuidanceContext], Denoise]
    needs: tuple[AuxiliaryModel, ...] = ()
    neutral: float | None = 1.0
    condition: str = ""
    null: bool = False
    shifts_mean: bool = False
    away: Callable[[GuidanceContext], Difference] | None = None
    still: Callable[[Process, Array], Array] | None = None
