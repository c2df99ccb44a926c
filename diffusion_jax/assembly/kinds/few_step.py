"""Few-step models: consistency models and MeanFlow, with their teachers."""

from __future__ import annotations

import functools

import jax
from ml_collections import ConfigDict

from diffusion_jax.assembly import denoiser, step_inputs
from diffusion_jax.assembly.kinds import diffusion
from diffusion_jax.assembly.settings import Experiment, Kind
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Denoise, Key, Params
from diffusion_jax.denoisers import parameterization
from diffusion_jax.objectives.base import FewStepNetworks
from diffusion_jax.processes import gaussian
from diffusion_jax.training import ema, step


def complete(experiment: Experiment, config: ConfigDict) -> Experiment:
    """Check that an objective with guidance has a condition, and return the experiment itself.

    Args:
      experiment: the model, with its objective.
      config: its config, for messages.

    Raises:
      UserError: for an objective that guides by a condition that the model lacks.
    """
    if not experiment.objective.guided:
        return experiment
    if experiment.conditions.null(1) is None:
        raise UserError(
            f"config.objective={config.objective}: this model is unconditional, so there is no "
            "condition to guide by; leave guidance at 1, or set --config.conditional=True "
            "with labeled data"
        )
    if not experiment.learns_null:
        raise UserError(
            f"config.objective={config.objective} guides by the null condition, which "
            "config.label_dropout=0 never trains; leave guidance at 1, or set "
            "--config.label_dropout=0.1"
        )
    return experiment


def loss(experiment: Experiment) -> step.LossFn:
    """Return the loss of a few-step model, with the level of its noise, {'level': log-SNR (B,)}.

    The objective also receives the same weights held constant, their slow average and the teacher.
    The last two are among the averages of the training state.

    Args:
      experiment: the model, with its objective and its teacher.
    """
    objective = experiment.objective
    uncertain = {"log_variance": True} if experiment.options.get("uncertainty") else {}

    def run(params: Params, batch, keys: Key, now: step.Now):
        # all networks have the same dropout masks
        rngs = step_inputs.dropout(keys, now.train)
        student = functools.partial(denoiser.plain, experiment, train=now.train, rngs=rngs)
        frozen = student(jax.lax.stop_gradient(params))
        networks = FewStepNetworks(
            student(params, **uncertain),
            frozen,
            student(now.ema["target"]) if objective.ema_rate else frozen,
            teacher(experiment, now.ema["teacher"]) if objective.needs_teacher else None,
            lambda cond: cond and cond | experiment.conditions.null(len(keys)),
        )
        progress = now.step / experiment.training.steps
        x0, cond = step_inputs.examples(experiment, batch, keys, now.train)
        drawn = objective.draw(arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE), x0, progress)
        losses = objective.loss(networks, drawn, cond, progress)
        return losses, {"level": gaussian.logsnr(experiment.process, drawn.t)}

    return run


def teacher_scale(experiment: Experiment) -> float | None:
    """Return the scale of the teacher's guidance; None where it is not guided.

    It is config.distill.guidance, or where that is None the teacher's own scale.

    Args:
      experiment: the student, which has a teacher.

    Raises:
      UserError: for a teacher that has nothing to guide by or is guided by mean_shift, and where a
        scale is set and the student is unconditional.
    """
    (teacher, _), given = experiment.teacher, experiment.sources.teacher_guidance
    scale = teacher.sampling.guidance if given is None else given
    conditional = experiment.conditions.null(1) is not None
    if denoiser.is_guided(teacher, scale, key="config.distill.guidance", conditioned=conditional):
        if teacher.guide.shifts_mean:
            raise UserError(
                "config.distill.teacher is guided by mean_shift, which shifts the mean of "
                "ancestral steps and not the prediction that is distilled; name a teacher whose "
                "config.sampler.guide is classifier(...) or cfg()"
            )
        return scale
    if given is not None and not denoiser.is_neutral(teacher, given):
        raise UserError(
            f"config.distill.guidance={given:g}: the student is unconditional, so its teacher has "
            "no condition for guidance; leave it at None, or set --config.conditional=True"
        )
    return None


def teacher(experiment: Experiment, params: Params) -> Denoise:
    """Return the teacher with its guidance, as a denoiser of the student's process.

    Args:
      experiment: the student, which has a teacher.
      params: the parameters of the teacher.
    """
    own, _ = experiment.teacher
    scale = teacher_scale(experiment)
    denoise = denoiser.denoiser(own, params, scale=scale, clip=own.sampling.clip)
    return parameterization.change_process(denoise, own.process, experiment.process)


def companions(experiment: Experiment) -> tuple[ema.Ema, ...]:
    """Return the further averages in the training state: a slow 'target' and a frozen 'teacher'.

    Args:
      experiment: the student, whose objective says which of them it needs.

    Raises:
      UserError: for an objective that needs a teacher where there is none.
    """
    objective, steps = experiment.objective, experiment.training.steps
    if objective.needs_teacher and experiment.teacher is None:
        raise UserError(
            f"config.objective={experiment.specs.objective} learns from a teacher: set "
            "config.distill.teacher to the workdir of a trained diffusion model"
        )
    found = ()
    if objective.ema_rate:
        found += (ema.target(lambda step: objective.ema_rate(step / steps)),)
    if objective.needs_teacher:
        found += (ema.frozen("teacher", experiment.teacher[1]),)
    return found


KIND = Kind(
    name="a few-step model",
    complete=complete,
    prepare=diffusion.prepare,
    init=diffusion.init,
    loss=loss,
    draw=diffusion.draw,
    companions=companions,
)
