"""The optimizer, averages, mesh and train step of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.kinds import few_step_model, kind
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.training import ema, optimizer, sharding, state, step
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Key, Params


# ---- training
def moving_averages(config) -> ema.Ema:
    """The EMAs of config.ema."""
    halflives, powers = (
        ema.halflives(config.ema.halflives, ramp=config.ema.ramp),
        config.ema.get("powers", ()),
    )
    return ema.together(halflives, ema.powers(powers)) if powers else halflives


def grafted(fresh: Params, given: Params) -> Params:
    """`given` in place of `fresh`, but for what only the fresh network has (the second time's
    weights). UserError if they differ.
    """

    def flat(tree):
        return {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    new, old = flat(fresh), flat(given)
    wrong = [path for path, leaf in old.items() if path not in new or new[path].shape != leaf.shape]
    if wrong:
        raise UserError(
            f"config.init_from: its network is another, in {wrong[0]} for one; use the same config.model as there"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: old.get(jax.tree_util.keystr(path), leaf), fresh
    )


def weights_name(config) -> str:
    """Which weights of a state config.sampler.ema means: '' is the longest half-life, or the
    parameters if there is none.

    UserError for those it does not have, 'post_hoc(0.12)' among them: workdir.load makes these,
    after training.
    """
    halflives, powers = config.ema.halflives, config.ema.get("powers", ())
    which = config.sampler.ema or (ema.name(max(halflives)) if halflives else "params")
    if which not in (have := ["params", *map(ema.name, halflives), *map(ema.power_name, powers)]):
        raise unknown("config.sampler.ema", which, have)
    return which


def weights(config, current: TrainState) -> Params:
    """Those weights, of a state."""
    return {"params": current.params, **current.ema}[weights_name(config)]


class Training(NamedTuple):
    """What the loop needs, compiled for the devices by `runner`: see training/."""

    runner: sharding.Runner
    init: Callable[[Key], TrainState]  # a fresh state, to be placed by runner.init
    step: Callable  # (state, batches) -> (state, metrics), steps_per_call steps
    evaluate: Callable  # (params, batch, key) -> metrics


def training(experiment: Experiment, devices=None, loss: Callable = kind.loss_fn) -> Training:
    """The compiled train and evaluation steps of a config, on these devices (None: all). loss:
    loss_fn, or classifier_loss_fn.
    """
    config = experiment.config
    runner = sharding.runner(config.parallel, mesh=config.mesh.to_dict(), devices=devices)
    averages = ema.together(moving_averages(config), *few_step_model.companions(experiment))
    options = config.optimizer.to_dict()
    tx, schedule = optimizer.make_optimizer(
        options.pop("name"), total_steps=config.training.steps, **options
    )
    one = step.make_train_step(
        loss(experiment),
        tx,
        averages,
        schedule=schedule,
        axis_name=runner.axis_name,
        accumulate=config.training.accumulate,
    )

    def init(key: Key) -> TrainState:
        params_key, noise_key = jax.random.split(key)
        params = kind.init_params(experiment, params_key)
        params = params if experiment.begin is None else grafted(params, experiment.begin)
        return state.init_state(params, tx, averages, noise_key)

    return Training(
        runner,
        init,
        runner.compile(step.multi_step(one, config.training.steps_per_call)),
        runner.compile_eval(step.make_eval_step(loss(experiment), axis_name=runner.axis_name)),
    )
