"""The score of a setting: resumed by blocks, extended, alike on any devices, without its images."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.evaluation import intervals
from diffusion_jax.studies import blocks, scoring
from tests.spoiled import spoiled
from tests.studies.scored_model import tiny


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def drawn(model, monkeypatch):
    """(plan, judge, the first seed of every batch that is drawn); blocks of eight images."""
    monkeypatch.setattr(blocks, "BLOCK", 8)
    trained, dataset, judged = model
    plan, calls = scoring.plan_of(trained, None, dataset, range(20)), []

    def draw(keys, cond):
        calls.append(len(calls))
        return plan.draw(keys, cond)

    return plan._replace(draw=draw, batch_size=8), judged, calls


def test_a_run_that_is_killed_resumes_at_its_block_and_more_seeds_extend_it(drawn, tmp_path):
    plan, judged, calls = drawn
    straight = scoring.score(plan, judged, None, shown=3)
    longer = scoring.score(plan._replace(seeds=range(28)), judged, None, description="")
    calls.clear()

    def killed(keys, cond):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plan.draw(keys, cond)

    folder = scoring.folder_of(tmp_path, plan, judged)
    with pytest.raises(KeyboardInterrupt):
        scoring.score(plan._replace(draw=killed), judged, folder, shown=3)
    assert sorted(p.name for p in folder.iterdir()) == [
        "00000000-00000008.npz",
        "00000008-00000016.npz",
    ]
    resumed = scoring.score(plan, judged, folder, shown=3)
    assert len(calls) == 3  # two blocks before it was killed, and the last
    assert resumed.measured.keys() == {
        *("frechet", "kid", "kid_se", "precision", "recall", "density", "coverage")
    }
    same(resumed, straight)
    np.testing.assert_array_equal(resumed.shown, straight.shown)
    again = scoring.score(plan, judged, folder, shown=3)
    assert len(calls) == 3
    same(again, straight)
    more = plan._replace(seeds=range(28))
    assert scoring.folder_of(tmp_path, more, judged) == folder
    same(scoring.score(more, judged, folder), longer)
    assert len(calls) == 5  # 20 to 23, and 24 to 27
    blocks.discard(folder)
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def same(a, b):
    assert a.scores == b.scores and a.intervals == b.intervals and a.count == b.count
    for name, measured in a.measured.items():
        np.testing.assert_array_equal(measured.left_out, b.measured[name].left_out)


def test_a_damaged_block_is_made_again(drawn, tmp_path, capsys):
    plan, judged, calls = drawn
    first = scoring.score(plan, judged, tmp_path, description="")
    for _ in spoiled(tmp_path / "00000008-00000016.npz"):
        calls.clear()
        same(scoring.score(plan, judged, tmp_path, description=""), first)
        assert len(calls) == 1 and "made again" in capsys.readouterr().err


def test_other_settings_another_judge_and_other_seeds_have_blocks_of_their_own(drawn, model):
    plan, judged, _ = drawn
    trained, dataset, _ = model
    settings = trained.experiment.sampling
    other = scoring.plan_of(trained, settings._replace(nfe=3), dataset, range(20))
    larger = scoring.plan_of(trained, settings._replace(batch_size=5), dataset, range(20))
    known = judged._replace(identity={**judged.identity, "reads": ["accuracy"]})
    root = Path("a")
    folders = [
        scoring.folder_of(root, plan, judged),
        scoring.folder_of(root, other, judged),
        scoring.folder_of(root, plan, known),
        scoring.folder_of(root, plan._replace(seeds=range(1, 21)), judged),
        scoring.folder_of(root, plan._replace(seeds=[0, 2]), judged),
    ]
    assert len({*folders}) == 5 and scoring.folder_of(root, larger, judged) == folders[0]


def test_images_are_not_kept(drawn):
    """When a block is judged, the images of the blocks before are gone; rows are all that stays."""
    plan, judged, _ = drawn
    alive, seen = [], []

    def extract(images, labels):
        gc.collect()
        alive.append(sum(image() is not None for image in seen))
        seen.append(weakref.ref(images))
        return judged.extract(images, labels)

    scoring.score(plan._replace(seeds=range(28)), judged._replace(extract=extract), None)
    gc.collect()
    assert len(alive) == 4 and set(alive) == {0} and not any(image() is not None for image in seen)


def test_batches_and_devices_change_no_number():
    """Images of eight devices in batches of eight are those of one device in one batch of 20; the
    likelihoods of six images agree to the rounding of float32."""
    lines = []
    for devices, batch in ((1, 20), (8, 8)):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.studies.scored_model", str(batch)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        lines.append(done.stdout.split() if done.stdout else pytest.fail(done.stderr))
    assert [line[0] for line in lines] == ["1", "8"] and len(lines[0]) > 16
    bits = np.array([line[1:7] for line in lines], float)
    np.testing.assert_allclose(bits[1], bits[0], rtol=1e-6)
    assert lines[0][7:] == lines[1][7:]


def test_intervals_of_a_fraction_and_of_a_mean():
    """Wilson's interval of 8 of 10 is [0.490, 0.943]; the jackknife of a mean over five groups is
    the standard error of the means of the groups, with Student's t.
    """
    found = intervals.fraction(np.arange(10) < 8)
    assert found.value == 0.8 and 2 * found.interval == pytest.approx(0.943 - 0.490, abs=1e-3)
    assert intervals.fraction(np.ones(50, bool)).interval > 0.03
    x = np.random.default_rng(0).normal(size=50)
    mean = intervals.by_groups(lambda stays: {"mean": x[stays].mean()}, 50)["mean"]
    means = x.reshape(5, 10).mean(1)
    expected = 2.776445 * means.std(ddof=1) / np.sqrt(5)
    assert mean.interval == pytest.approx(expected) and len(mean.left_out) == 5
    few = intervals.by_groups(lambda stays: {"mean": x[:9][stays].mean()}, 9)["mean"]
    assert few.interval is None and len(few.left_out) == 0
    both = intervals.mean_of_sets([{"mean": mean}, {"mean": mean}])["mean"]
    assert both.value == mean.value
    assert both.interval == pytest.approx(mean.interval / np.sqrt(2))
