"""configs/folder.py: a network for every size, and a forecast of when first shapes are to be
expected.
"""

from __future__ import annotations

import jax
import pytest

from configs import folder
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import forecast


@pytest.mark.parametrize("size", folder.SIZES)
def test_every_size_has_a_network_that_fits_it(size):
    config = folder.get_config(f"edm,{size}")
    assert (
        config.data.image_size == size and 0 < config.training.first_shapes < config.training.steps
    )
    experiment = assemble(config, (size, size, 3), 3)
    params = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    assert 5e5 < sum(x.size for x in jax.tree.leaves(params)) < 1e7


def test_variants_and_sizes():
    assert (
        folder.get_config().data.image_size == 32
        and folder.get_config(",64").objective == "denoising.edm()"
    )
    assert folder.get_config("flow,16").process == "schedules.RectifiedFlow()"
    for bad in ("edm,48", "edm,big", "edm,-32", "edm,٣٢٣"):
        with pytest.raises(UserError, match="unknown size '.*'.* There are: 128, 16, 256, 32, 64"):
            folder.get_config(bad)
    with pytest.raises(UserError, match="unknown variant 'emd'; did you mean 'edm'"):
        folder.get_config("emd")


def test_the_clock_leaves_out_the_compilation():
    now, reported = [0.0], []

    def step(state, batch):
        now[0] += 100.0 if state == 0 else 2.0
        return state + 1, {}

    run, state = forecast.timed(step, reported.append, clock=lambda: now[0]), 0
    for _ in range(40):
        state, _ = run(state, None)
    assert reported == [2.0] and state == 40


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0.3, "at step 1,000, in about 5 minutes at 107 images/s; look at runs/a/samples"),
        (10.0, "in about 2.7 hours at 3.2 images/s; look at"),
        (
            60.0,
            "in about 16 hours at 0.533 images/s: too long on this machine; use smaller images, "
            "such as",
        ),
    ],
)
def test_the_line(seconds, said):
    line = forecast.line(
        seconds, step=13, first_shapes=1000, batch_size=32, folder="runs/a/samples"
    )
    assert line.startswith("first shapes are expected") and said in line


def test_durations():
    assert [forecast.duration(s) for s in (5, 89, 90, 3600, 7200, 100_000, 200_000)] == [
        "5 seconds",
        "89 seconds",
        "2 minutes",
        "60 minutes",
        "2.0 hours",
        "28 hours",
        "2 days",
    ]
