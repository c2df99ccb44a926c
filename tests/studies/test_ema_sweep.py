"""The sweep of the lengths of a power EMA: its seeds, its resumption, its table."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from configs import digits
from diffusion_jax.assembly import datasets
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import sweeps
from diffusion_jax.studies import ema_sweep
from diffusion_jax.training.post_hoc import Reconstructed
from tests.markdown import squeezed


def test_all_lengths_draw_the_same_seeds(tmp_path):
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), blocks=0, attention=(), head_width=8)
    config.data.data_dir, config.sampler.nfe, config.sampler.guidance = str(tmp_path), 2, 1.0
    dataset = datasets.dataset(config)
    experiment = assemble(config, dataset.image_shape, 0)
    params = jax.jit(lambda key: experiment.kind.init(experiment, key))(jax.random.key(0))
    score = ema_sweep.scorer(experiment, dataset, 10, 2, 5, metrics=("frechet",))
    one, again, other = score(params), score(params), score(jax.tree.map(lambda p: p + 0.1, params))
    assert len(one) == 2 and one[0] != one[1] and one == again and one != other


def test_a_sweep_resumes_where_it_stopped_and_starts_anew_for_other_settings(tmp_path):
    made, settings = [], {"num": 10, "config": {"seed": 0}}

    def make(length):
        if length == 0.2 and not made.count(0.2):
            made.append(length)
            raise KeyboardInterrupt
        made.append(length)
        return Reconstructed(length, 8, length)

    def run(settings):
        return ema_sweep.sweep(
            [0.05, 0.1, 0.2],
            make,
            lambda params: [{"frechet": params}, {"frechet": 3 * params}],
            path,
            settings,
        )

    path = tmp_path / "ema_sweep.json"
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    rows = run(settings)
    assert made == [0.05, 0.1, 0.2, 0.2] and [row["length"] for row in rows] == [0.05, 0.1, 0.2]
    assert json.loads(path.read_text())["provenance"]["config_hash"]
    run(settings | {"num": 20})
    assert made[4:] == [0.05, 0.1, 0.2]
    means = ema_sweep.means(rows)
    assert means[1]["frechet"] == pytest.approx((0.2, 0.1 * np.sqrt(2)))
    table = squeezed(ema_sweep.report(means))
    assert "| 0.1 | 10 % | 0.2 ± 0.14 |" in table and "0.2*" in table
    sweeps.lengths(means, tmp_path / "a.png", title="a")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_lengths_of_a_sweep():
    assert ema_sweep.lengths_of("0.1,0.05") == [0.05, 0.1]
    for text, said in (("0.1;0.2", "write relative lengths with commas"), ("0.4", "at most 0.28")):
        with pytest.raises(UserError, match=said):
            ema_sweep.lengths_of(text)
