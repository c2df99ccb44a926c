"""Variational diffusion models, whose noise schedule can be learned with the network.

The parameters of the schedule are those of the network's tree under learned.NAME. So optimizer,
averages, checkpoints and placement need not know of them, and the network does not read them. Where
nothing of the schedule is learned, the kind is that of other diffusion models.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.assembly import denoiser, step_inputs
from diffusion_jax.assembly.kinds import diffusion
from diffusion_jax.assembly.settings import Experiment, SamplingSettings
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.types import Array, Cond, Key, Params, Prediction
from diffusion_jax.processes import gaussian, learned
from diffusion_jax.training import step


def complete(experiment: Experiment, config: ConfigDict) -> Experiment:
    """Return the experiment with the process between the ends where training starts.

    Args:
      experiment: the model.
      config: its config, which is not used.
    """
    if not (found := experiment.objective.learned):
        return experiment
    return experiment._replace(process=found.schedule.trained(found.schedule.fresh()))


def init(experiment: Experiment, key: Key) -> Params:
    """Initialize the parameters of the network and of the schedule.

    Args:
      experiment: the model.
      key: one key.
    """
    params, found = diffusion.init(experiment, key), experiment.objective.learned
    return params | {learned.NAME: found.schedule.fresh()} if found else params


def loss(experiment: Experiment) -> step.LossFn:
    """Return the bound, with the level of its noise, {'level': log-SNR (B,)}, and its other terms.

    Args:
      experiment: the model.
    """
    if not (found := experiment.objective.learned):
        return diffusion.loss(experiment)

    def run(params: Params, batch, keys: Key, now: step.Now):
        x0, cond = step_inputs.examples(experiment, batch, keys, now.train)
        rngs = step_inputs.dropout(keys, now.train)

        def predict(params: Params, context: tuple, x_t: Array, t: Array) -> Prediction:
            cond, rngs = context
            return denoiser.plain(experiment, params, train=now.train, rngs=rngs)(x_t, t, cond)

        own, keys = params[learned.NAME], arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE)
        losses, t, examples = found.loss(predict, params, own, keys, x0, (cond, rngs))
        return losses, examples | {"level": gaussian.logsnr(experiment.process, t)}

    return run


def draw(
    experiment: Experiment,
    params: Params,
    keys: Key,
    cond: Cond,
    ts: Array,
    scale: Array | None,
    settings: SamplingSettings,
) -> tuple[Array, Array]:
    """Sample as other diffusion models do, from the prior at the learned noise end.

    Args:
      experiment: the model.
      params: the parameters of the network and of the schedule.
      keys: (B,), one for each sample.
      cond: the conditions of the samples, or None.
      ts: decreasing times (n,), padded by repetitions of the last one.
      scale: the scale of the guidance, a scalar; None without guidance.
      settings: the sampler, its noise and its clip.

    Returns:
      (x0 (B, ...), NFE of each sample (B,)).
    """
    if found := experiment.objective.learned:
        process = found.schedule.process(params[learned.NAME])
        experiment = experiment._replace(process=process)
    return diffusion.draw(experiment, params, keys, cond, ts, scale, settings)


def learned_by(experiment: Experiment, params: Params) -> Experiment:
    """Return the experiment with the process between the ends that its parameters have learned.

    Args:
      experiment: the model.
      params: the parameters of the network and of the schedule.
    """
    if not (found := experiment.objective.learned):
        return experiment
    return experiment._replace(process=found.schedule.trained(params[learned.NAME]))


KIND = diffusion.KIND._replace(
    complete=complete, init=init, loss=loss, draw=draw, learned_by=learned_by
)
