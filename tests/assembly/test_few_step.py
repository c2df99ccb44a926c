"""Few-step models from a config to a workdir: students, teachers, comparison and the command."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose

from configs import base as base_config
from configs import toy
from diffusion_jax.assembly import (
    datasets,
    denoiser,
    preparation,
    sampling,
    train,
    trainer,
    workdir,
)
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.samplers import few_step
from diffusion_jax.studies import subjects
from diffusion_jax.studies.samplers import cells
from diffusion_jax.training import ema, restoring
from tests import commands
from tests.markdown import squeezed


def test_targets_follow_and_teachers_stand_still():
    steps = ema.together(
        ema.target(lambda step: 1 - 1 / (step + 2)), ema.frozen("teacher", {"w": jnp.full(2, 7.0)})
    )
    state = steps.init({"w": jnp.zeros(2)})
    for k in range(3):  # e <- e + (w - e) / (k + 2): the mean of 0 and the values so far
        state = steps.update(state, {"w": jnp.full(2, float(k + 1))}, jnp.float32(10 * k), 10)
    assert_allclose(state["target"]["w"], (0 + 1 + 2 + 3) / 4, rtol=1e-6)
    assert_allclose(state["teacher"]["w"], 7.0)


def recipe(variant, teacher="", **changes):
    """A few-step config of points, 8 steps of 16."""
    config = toy.get_config("edm")
    config.model.update(width=8, blocks=1)
    config = base_config.few_step(config, variant, teacher)
    config.data.batch_size, config.optimizer.warmup = 16, 2
    config.training.update(steps=8, log_every=2, eval_every=8, sample_every=8, checkpoint_every=4)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A teacher, and a student that went on after its 4th step."""
    root = tmp_path_factory.mktemp("few_step")
    train.train(recipe("teacher").lock(), str(root / "teacher"))
    for steps in (4, 8):
        student = recipe("cd", str(root / "teacher"))
        student.optimizer.schedule = "constant"
        student.training.steps = steps
        train.train(student.lock(), str(root / "cd"))
    return root


def test_a_student_is_trained_by_a_workdir(workdirs):
    """It begins as the teacher, which stands still in its state next to the EMA network; neither is
    offered to sample from.
    """
    config = workdir.saved_config(workdirs / "cd")
    trained, teacher = (
        workdir.load(workdirs / name, workdir.saved_config(workdirs / name))
        for name in ("cd", "teacher")
    )
    assert trained.step == 8 and trained.weights == "5k"
    whole = preparation.with_teacher(assemble(config, (2,)))
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.begin, teacher.params))
    assert preparation.with_teacher(assemble(config, (2,)), workdirs / "cd").begin is None
    parts = trainer.training(whole)
    state = restoring.restore(
        workdirs / "cd" / "checkpoints", parts.runner.template(parts.init, jax.random.key(0))
    ).state
    assert set(state.ema) == {"5k", "target", "teacher"}
    assert jax.tree.all(jax.tree.map(np.array_equal, state.ema["teacher"], teacher.params))

    def flat(params):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    def moved(params):
        return np.linalg.norm(flat(params) - flat(teacher.params))

    ahead, behind = moved(state.params), moved(state.ema["target"])
    assert 0 < behind < 0.5 * ahead
    settings = trained.experiment.sampling._replace(weights="teacher")
    with pytest.raises(UserError, match="There are: 5k, params"):
        trainer.weights_name(trained.experiment._replace(sampling=settings))
    chosen = sampling.method(trained.experiment)
    assert sampling.evaluations(chosen) == 2
    draw = sampling.sample_with(trained.experiment, trained.params, chosen)
    assert np.isfinite(draw(jax.random.split(jax.random.key(0), 4), None)).all()


@pytest.mark.parametrize("variant", ["meanflow", "ect"])
def test_a_model_of_two_times_is_clipped_at_the_end_alone(variant):
    """Whose fresh network gives x0-hat = x at these x, outside of [-1, 1]; a model of one time is
    clipped in every move.
    """
    experiment = assemble(recipe(variant), (2,))
    x, t = jnp.full((3, 2), 3.0), jnp.full(3, 0.2 if variant == "meanflow" else 0.001)
    params = jax.jit(lambda: trainer.training(experiment).init(jax.random.key(0)).params)()
    denoise = denoiser.denoiser(experiment, params, clip="static")
    assert np.abs(denoise(x, t).x0).max() == 1
    assert np.abs(denoise(x, t, few_step.ending_at(None, t / 2, 3)).x0).max() == (
        1 if variant == "ect" else pytest.approx(3, rel=0.3)
    )


def test_few_step_workdirs_are_compared(workdirs):
    """The models are compared at one evaluation and more, each by its own sampler.

    Few-step models have no trajectory, so that they have no distance to an exact solution.
    """
    trained = workdir.load(workdirs / "cd", workdir.saved_config(workdirs / "cd"))
    dataset = datasets.dataset(ConfigDict(trained.experiment.record))
    subject = subjects.of_model(trained, dataset, range(20), "cd")
    chosen = cells.cells(["few_step.multistep"], [1, 2, 4], trained.experiment.process, "few_step")
    compared = cells.compare(subject, chosen, workdirs / "compare")
    assert [result.row["evaluations"] for result in compared.results] == [1, 2, 4]
    assert all(
        result.row["sliced_wasserstein"] > 0 and "error" not in result.row
        for result in compared.results
    )
    assert "follows no path" in compared.exact.row["what"]


TINY = """
from configs import base as base_config

def get_config(name="ect"):
    config = base_config.base()
    config.data.update(name="npz", path="nowhere", batch_size=16)
    config.model = base_config.network("dit.DiT", width=8, depth=1, heads=1)
    config = base_config.few_step(config, name, "filled in by the command")
    config.training.update(steps=2, log_every=1, eval_every=0, sample_every=0, checkpoint_every=2)
    return config
"""


@pytest.mark.long
def test_the_command_trains_judges_and_finds_it_all_again(tmp_path):
    """The diffusion model and what starts from it, on images that --images names; times are also
    searched.
    """
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "images.npz",
        images=draw.integers(0, 256, (60, 8, 8, 1), np.uint8),
        labels=np.arange(60) % 2,
    )
    (tmp_path / "tiny.py").write_text(TINY)
    line = [
        "few_step",
        f"--recipe={tmp_path / 'tiny.py'}",
        f"--workdir={tmp_path / 'all'}",
        f"--images={tmp_path / 'images.npz'}",
        "--methods=ect",
        "--nfe=1,2",
        "--teacher_nfe=3",
        "--num=12",
        "--search",
    ]
    done = commands.run(*line)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "all" / "few_step.json").read_text())
    assert [(row["sampler"].partition(" ")[0], row["nfe"]) for row in kept["rows"]] == [
        ("diffusion", 1),
        ("diffusion", 2),
        ("diffusion", 3),
        ("ect", 1),
        ("ect", 2),
        ("ect,", 2),
    ]
    assert all(
        row["frechet"] > 0 for row in kept["rows"]
    ) and "| ect, times searched |" in squeezed(done.stdout)
    assert {"few_step.png", "few_step_grid.png", "few_step.md"} <= {
        path.name for path in (tmp_path / "all").iterdir()
    }
    again = commands.run(*line)
    assert (
        again.stdout == done.stdout and "step 1/2" in done.stderr and "step 1/2" not in again.stderr
    )


def test_mistakes(workdirs, tmp_path):
    teacher = str(workdirs / "teacher")
    with pytest.raises(UserError, match="learns from a teacher: set config.distill.teacher"):
        trainer.training(assemble(recipe("scd"), (2,)))
    with pytest.raises(UserError, match="is for examples"):
        preparation.with_teacher(assemble(recipe("cd", teacher), (3,)))
    other = recipe("ect", teacher)
    other.model.width = 16
    with pytest.raises(UserError, match="another network, by config.model.width"):
        preparation.with_teacher(assemble(other, (2,)))
    assert preparation.with_teacher(assemble(recipe("ect", teacher), (2,))).begin is not None
    meanflow_of_it = recipe("meanflow", init_from=teacher)
    with pytest.raises(UserError, match="another network, by config.parameterization"):
        preparation.with_teacher(assemble(meanflow_of_it, (2,)))
    meanflow_of_it.parameterization = "edm()"  # the second time's weights are fresh
    begun = preparation.with_teacher(assemble(meanflow_of_it, (2,)))
    params = trainer.training(begun).init(jax.random.key(0)).params
    assert not np.any(params["condition"]["to"]["kernel"])
    assert np.array_equal(params["first"]["kernel"], begun.begin["first"]["kernel"])
