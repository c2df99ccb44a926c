"""Few-step models: consistency models and MeanFlow, with their teachers."""

from __future__ import annotations

from collections.abc import Callable

import jax

from diffusion_jax import arrays
from diffusion_jax.assembly import conditions, denoiser
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.denoisers import parameterization
from diffusion_jax.errors import UserError
from diffusion_jax.objectives.base import FewStep, FewStepNetworks, Objective
from diffusion_jax.processes import gaussian
from diffusion_jax.training import ema, step
from diffusion_jax.types import Denoise, Key, Params


def follows_a_path(experiment: Experiment) -> bool:
    """Whether the network is a denoiser, whose probability flow can be solved, rather than one that
    jumps.
    """
    return type(experiment.objective) is Objective


def _few_step_loss(experiment: Experiment) -> Callable:
    """The loss of a network that jumps, with the level of its noise: the students, and the teacher
    out of the state's averages.
    """
    network, objective, steps = (
        denoiser.apply(experiment),
        experiment.objective,
        experiment.config.training.steps,
    )

    def loss(params: Params, batch, keys: Key, now: step.Now):
        rngs = (
            {"dropout": jax.random.fold_in(keys[0], 2)} if now.train else None
        )  # the same masks for all

        def student(params):
            return parameterization.denoiser(
                network,
                params,
                experiment.parameterization,
                experiment.process,
                train=now.train,
                rngs=rngs,
            )

        frozen = student(jax.lax.stop_gradient(params))
        networks = FewStepNetworks(
            student(params),
            frozen,
            student(now.ema["target"]) if objective.ema_rate else frozen,
            _teacher(experiment, now.ema["teacher"]) if objective.needs_teacher else None,
            lambda cond: cond and cond | conditions.null_cond(experiment, len(keys)),
        )
        progress = now.step / steps
        drawn = objective.draw(arrays.fold_in(keys, 0), conditions.example(batch, keys), progress)
        losses = objective.loss(
            networks, drawn, conditions.told(experiment, batch, keys, now.train), progress
        )
        return losses, {"level": gaussian.logsnr(experiment.process, drawn.t)}

    return loss


def teacher_scale(experiment: Experiment) -> float | None:
    """The guidance scale of the teacher: config.distill.guidance, or where that is None its own;
    None: it is not guided.

    Raises:
      UserError: for a teacher that has nothing to guide by, or where a scale is set and the student
        is unconditional.
    """
    (teacher, _), asked = experiment.teacher, experiment.config.distill.guidance
    scale = teacher.config.sampler.guidance if asked is None else asked
    told = conditions.null_cond(experiment, 1) is not None
    if not denoiser.is_guided(teacher, scale, key="config.distill.guidance", told=told):
        if asked is not None and asked != teacher.guide.neutral:
            raise UserError(
                f"config.distill.guidance={asked:g}: the student is unconditional, so its teacher has no condition "
                "to guide by; leave it at None, or set --config.conditional=True"
            )
        return None
    return scale


def _teacher(experiment: Experiment, params: Params) -> Denoise:
    """The teacher with its guidance, as a denoiser under the student's process."""
    teacher, _ = experiment.teacher
    denoise = denoiser.denoiser(
        teacher, params, scale=teacher_scale(experiment), clip=teacher.config.sampler.clip
    )
    return parameterization.change_process(denoise, teacher.process, experiment.process)


def companions(experiment: Experiment) -> tuple[ema.Ema, ...]:
    """What a few-step objective has in the state besides: its slow copy 'target', and the frozen
    'teacher'. Never sampled from.
    """
    objective, steps = experiment.objective, experiment.config.training.steps
    if type(objective) is not FewStep:
        return ()
    if objective.needs_teacher and experiment.teacher is None:
        raise UserError(
            f"config.objective={experiment.config.objective} learns from a teacher: set config.distill.teacher "
            "to the workdir of a trained diffusion model"
        )
    target = (
        (ema.target(lambda step: objective.ema_rate(step / steps)),) if objective.ema_rate else ()
    )
    return target + (
        (ema.frozen("teacher", experiment.teacher[1]),) if objective.needs_teacher else ()
    )
