"""The weights that a workdir holds: checkpoints of a run, or the one set of a published model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from diffusion_jax.assembly import trainer
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Params
from diffusion_jax.pretrained import folders
from diffusion_jax.training import ema, placement, post_hoc, restoring


class Weights(NamedTuple):
    """The parameters of a network.

    Attributes:
      params: the parameters.
      step: the step of training after which they are.
      name: 'params', the name of an EMA, or 'post_hoc(LENGTH)'.
    """

    params: Params
    step: int
    name: str


def has_model(workdir: str | Path) -> bool:
    """Return whether a workdir holds a trained model.

    Args:
      workdir: the local folder.
    """
    root = Path(workdir).expanduser()
    return folders.is_published(root) or restoring.latest_step(root / "checkpoints") is not None


def identity(workdir: Path, chosen: str) -> int | str | None:
    """What tells the weights of a workdir from others: the step of a run, or the published hash.

    Args:
      workdir: the local folder.
      chosen: config.sampler.checkpoint.
    """
    if folders.is_published(workdir):
        return folders.manifest(workdir)["files"][folders.WEIGHTS]["sha256"]
    return restoring.latest_step(checkpoints(workdir, chosen))


def checkpoints(workdir: Path, chosen: str) -> Path:
    """The folder of checkpoints that config.sampler.checkpoint means.

    Args:
      workdir: the workdir.
      chosen: '' for the newest, 'best' for that of the smallest config.training.best.

    Raises:
      UserError: for another choice, and where no best checkpoint was kept.
    """
    if chosen not in ("", "best"):
        raise unknown("config.sampler.checkpoint", chosen, ["best"])
    if chosen and restoring.latest_step(workdir / "checkpoints_best") is None:
        raise UserError(
            f"{workdir} has no best checkpoint; train with --config.training.best=eval_loss to "
            "keep it"
        )
    return workdir / ("checkpoints_best" if chosen else "checkpoints")


def check(workdir: Path | None, experiment: Experiment) -> None:
    """Refuse weights that a workdir does not have, without reading them.

    Args:
      workdir: the local folder; None for a model that is not trained yet.
      experiment: the model, whose sampling settings name the weights.

    Raises:
      UserError: naming the key.
    """
    chosen = experiment.sampling
    if workdir is not None and folders.is_published(workdir):
        _published_name(workdir, experiment, None)
        return
    length = post_hoc.length_of(chosen.weights)
    if length is None:
        trainer.weights_name(experiment)
    else:
        ema.gamma(length)
    if workdir is None:
        return
    checkpoints(workdir, chosen.checkpoint)
    if length is not None and not post_hoc.steps(workdir / "ema_snapshots"):
        raise UserError(
            f"config.sampler.ema={chosen.weights}: there are no snapshots in "
            f"'{workdir / 'ema_snapshots'}'; train with --config.ema.powers='(0.05,0.1)'"
        )


def read(
    workdir: Path, experiment: Experiment, mesh: Mesh | None = None, step: int | None = None
) -> Weights:
    """Read the weights that the sampling settings name.

    Args:
      workdir: the local folder.
      experiment: the model and its settings.
      mesh: where the weights are placed; None: whole, where JAX places an array.
      step: the checkpoint of that step instead of the newest.

    Raises:
      UserError: if there are no such weights, or they do not fit the model.
    """
    chosen = experiment.sampling
    template = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    if folders.is_published(workdir):
        return _read_published(workdir, experiment, template, mesh, step)
    template = placement.placed(template, mesh) if mesh else template
    if length := post_hoc.length_of(chosen.weights):
        made = post_hoc.reconstruct(workdir / "ema_snapshots", length, template)
        params = placement.put(made.params, mesh) if mesh else made.params
        return Weights(params, made.step, chosen.weights)
    which = trainer.weights_name(experiment)
    restored = restoring.restore_params(
        checkpoints(workdir, chosen.checkpoint),
        None if which == "params" else which,
        template=template,
        step=step,
    )
    return Weights(restored.state, restored.step, which)


def _read_published(
    workdir: Path, experiment: Experiment, template: Any, mesh: Mesh | None, step: int | None
) -> Weights:
    """The one set of weights that a published model has, in the dtypes of the network."""
    about = _published_name(workdir, experiment, step)
    found = folders.read_weights(workdir, placement.leaves_by_path(template))
    params = jax.tree.unflatten(jax.tree.structure(template), list(found.values()))
    params = placement.put(params, mesh) if mesh else jax.tree.map(jax.numpy.asarray, params)
    return Weights(params, about["step"], about["weights"])


def _published_name(workdir: Path, experiment: Experiment, step: int | None) -> dict[str, Any]:
    """The manifest of a published model; UserError where other weights are requested."""
    about, chosen = folders.manifest(workdir), experiment.sampling
    if (
        chosen.checkpoint
        or chosen.weights not in ("", about["weights"])
        or (step not in (None, about["step"]))
    ):
        wanted = f"checkpoint={chosen.checkpoint}" if chosen.checkpoint else f"ema={chosen.weights}"
        wanted = f"step={step}" if step is not None else f"config.sampler.{wanted}"
        raise UserError(
            f"{wanted}: the published model {workdir} has the weights '{about['weights']}' of step "
            f"{about['step']} alone; leave it out, or use a run that keeps others"
        )
    return about
