"""The optimizer, averages, mesh and train step of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Batch, Key, Params
from diffusion_jax.processes import learned
from diffusion_jax.training import ema, loss_scale, sharding, state, step
from diffusion_jax.training.state import TrainState


def grafted(fresh: Params, given: Params) -> Params:
    """Return given parameters, with those that only the fresh network has.

    A few-step network has weights of its second time that the diffusion model lacks. A network of
    other classes keeps the given vector of "no class", and has fresh ones of its classes. A noise
    schedule that the given model has learned is left out where the new one learns none.

    Args:
      fresh: the initial parameters of the network.
      given: parameters of the same network, or of one that lacks some of its leaves.

    Raises:
      UserError: for parameters of another network.
    """

    def flat(tree: Params) -> dict[str, Array]:
        return {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    if learned.NAME not in fresh:
        given = {name: own for name, own in given.items() if name != learned.NAME}
    new, old = flat(fresh), flat(given)
    for path in new.keys() & old.keys():  # of other classes, but of the same width
        (rows, *width), (theirs, *other) = new[path].shape or (0,), old[path].shape or (0,)
        if path.endswith("['label']['rows']") and width == other and rows != theirs:
            old[path] = new[path].at[-1].set(old[path][-1])
    wrong = [path for path, leaf in old.items() if path not in new or new[path].shape != leaf.shape]
    if wrong:
        raise UserError(
            f"config.init_from: its network is another, in {wrong[0]} for one; use the same "
            "config.model as there"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: old.get(jax.tree_util.keystr(path), leaf), fresh
    )


def weights_name(experiment: Experiment) -> str:
    """Name the weights in a training state that experiment.sampling.weights selects.

    Args:
      experiment: the model, with its averages and sampling settings.

    Raises:
      UserError: for weights that the state does not have, among them 'post_hoc(0.12)', which
        workdir.load makes after training.
    """
    averages = experiment.averages
    which = experiment.sampling.weights or averages.default
    if which not in (have := ("params", *averages.names)):
        raise unknown("config.sampler.ema", which, have)
    return which


def weights(experiment: Experiment, current: TrainState) -> Params:
    """Return the weights of a training state that sampling uses.

    Args:
      experiment: the model, with its averages and sampling settings.
      current: the training state.
    """
    return {"params": current.params, **current.ema}[weights_name(experiment)]


class Training(NamedTuple):
    """The compiled training of an experiment.

    Attributes:
      runner: how steps meet the devices.
      init: key -> a fresh state, which runner.init places.
      step: (state, batches) -> (state, metrics) of steps_per_call steps.
      evaluate: (state, batch, key) -> metrics.
    """

    runner: sharding.Runner
    init: Callable[[Key], TrainState]
    step: step.Step
    evaluate: Callable[[TrainState, Batch, Key], step.Metrics]


def training(experiment: Experiment, devices: Sequence[jax.Device] | None = None) -> Training:
    """The compiled training and evaluation steps of an experiment.

    Args:
      experiment: the model and its settings.
      devices: those to train on; None for all.
    """
    settings = experiment.training
    runner = sharding.runner(experiment.mesh.parallel, mesh=experiment.mesh.sizes, devices=devices)
    averages = ema.together(experiment.averages.ema, *experiment.kind.companions(experiment))
    tx, schedule = experiment.optimizer
    tx = loss_scale.with_state(settings.loss_scale, tx)
    loss = experiment.kind.loss(experiment)
    one = step.make_train_step(
        loss,
        tx,
        averages,
        schedule=schedule,
        axis_name=runner.axis_name,
        accumulate=settings.accumulate,
        forensics=True,
        # a network may have a projection of its parameters, such as edm2.EDM2UNet
        constrain=getattr(experiment.model, "constrain", None),
        remember=experiment.kind.remember(experiment),
        scaling=settings.loss_scale,
    )

    def init(key: Key) -> TrainState:
        params_key, noise_key = jax.random.split(key)
        params = experiment.kind.init(experiment, params_key)
        params = params if experiment.begin is None else grafted(params, experiment.begin)
        return state.init_state(params, tx, averages, noise_key)

    return Training(
        runner,
        init,
        runner.compile(step.multi_step(one, settings.steps_per_call)),
        runner.compile_eval(step.make_eval_step(loss, axis_name=runner.axis_name)),
    )
