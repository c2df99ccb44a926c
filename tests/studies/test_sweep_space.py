"""The keys and values of a sweep: ranges, lists, and one line for each mistake."""

from __future__ import annotations

import re

import pytest

from configs import digits
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.sweep import space as sweep_space

CONFIG = digits.get_config("vp").lock()


def values(text):
    return sweep_space.parse(CONFIG, [text]).axes[0].values


@pytest.mark.parametrize(
    "text, found",
    [
        ("sampler.guidance=1:2:0.5", (1.0, 1.5, 2.0)),
        ("sampler.guidance=0:0.3:0.1", (0.0, 0.1, 0.2, 0.3)),
        ("sampler.guidance=1:2:0.6", (1.0, 1.6)),
        ("config.sampler.nfe = 5:20:5", (5, 10, 15, 20)),
        ("optimizer.learning_rate=1e-4:1e-2:log3", (1e-4, 1e-3, 1e-2)),
        ("sampler.name=[ddim, ancestral.ddim, heun]", ("ancestral.ddim", "ode.heun")),
        ("sampler.ema=['', params, 'post_hoc(0.1)']", ("", "params", "post_hoc(0.1)")),
        (
            "sampler.guide=[cfg(), interval(low=0.2, high=3.0)]",
            ("cfg()", "interval(low=0.2, high=3.0)"),
        ),
        ("model.multipliers=[(1, 2), (1,)]", ((1, 2), (1,))),
        ("conditional=[True, false]", (True, False)),
    ],
)
def test_values(text, found):
    assert values(text) == found


MISTAKES = {
    "sampler.guidence=[1]": "key 'sampler.guidence'; did you mean 'sampler.guidance'",
    "sampler.guidance=4:1:0.5": "the range is empty, since 4 is above 1",
    "sampler.guidance=1:4:-1": "the step is -1; it must be above 0",
    "sampler.guidance=1:4:0": "the step is 0; it must be above 0",
    "sampler.guidance=a:b:c": "write numbers, START:STOP:STEP",
    "sampler.guidance=nan:1:1": "must be finite",
    "sampler.guidance=0:1:log3": "must start above 0",
    "sampler.guidance=1:2:log1": "a whole number of values from 2",
    "sampler.nfe=1:1e9:1": "values, and at most 1000",
    "sampler.nfe=0:4:1": "config.sampler.nfe=0: it must be a whole number",
    "sampler.nfe=[2.5]": "config.sampler.nfe=2.5: it must be a whole number",
    "sampler.nfe=[]": "the list is empty",
    "sampler.nfe=5": "one value is set by --config.sampler.nfe=VALUE",
    "sampler.name=[ddimm]": "unknown sampler 'ddimm'; did you mean 'ancestral.ddim'",
    "sampler.name=[ddim(eta=0.5]": "ddim(eta=0.5",
    "sampler=[1]": "config.sampler is a section",
    "sampler": "write KEY=VALUES",
    "=[1]": "write KEY=VALUES",
    "sampler.batch_size=[1, 2]": "this key changes no sample",
    "training.log_every=[1, 2]": "this key changes no sample",
    "data.name=[digits, two_moons]": "samples of different data cannot be compared",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line(text):
    with pytest.raises(UserError, match=re.escape(MISTAKES[text])) as error:
        values(text)
    assert "\n" not in str(error.value)


def test_a_sweep_needs_keys_and_each_once():
    with pytest.raises(UserError, match="--over is missing"):
        sweep_space.parse(CONFIG, [])
    with pytest.raises(UserError, match="--over=sampler.nfe is given twice"):
        sweep_space.parse(CONFIG, ["sampler.nfe=[1]", "sampler.nfe=[2]"])


def test_cells_count_through_all_combinations_and_are_written_as_overrides():
    space = sweep_space.parse(CONFIG, ["sampler.name=[ddim(eta=0.5), heun]", "sampler.nfe=[5, 10]"])
    assert space.size == 4
    cells = [tuple(space.settings(i).values()) for i in range(4)]
    first, second = "ancestral.ddim(eta=0.5)", "ode.heun"
    assert cells == [(first, 5), (first, 10), (second, 5), (second, 10)]
    assert sweep_space.overrides(space.settings(0)) == (
        "--config.sampler.name='ancestral.ddim(eta=0.5)' --config.sampler.nfe=5"
    )
    assert sweep_space.with_settings(CONFIG, space.settings(2)).sampler.name == "ode.heun"
    assert CONFIG.sampler.name == "ancestral.ddim"
