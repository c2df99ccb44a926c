"""The noise-conditional classifier: its network, its training, and a sweep that it guides."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from configs import digits
from diffusion_jax.assembly import denoiser, train, train_classifier, workdir
from diffusion_jax.assembly.experiment import guided_by
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import guidance
from diffusion_jax.models.classifier import HalfUNet
from diffusion_jax.processes import schedules
from diffusion_jax.studies.sweep import guidance_sweep
from diffusion_jax.training import metrics
from tests.denoisers.mixture_by_class import NET, exact_logits, points, tiny


def test_a_classifier_needs_a_label_and_its_classes():
    x, cond = points()
    logits = exact_logits(schedules.VP())
    with pytest.raises(UserError, match="needs a label as its condition"):
        guidance.class_log_prob(logits)(x, 0.4, None)
    with pytest.raises(UserError, match="has the classes 0 to 1"):
        guidance.class_log_prob(logits, against=2)(x, 0.4, cond)


def test_a_denoiser_is_no_classifier_and_other_processes_are_named():
    plain = tiny()
    experiment = guided_by("classifier('c')", plain, lambda other: (plain, None))
    with pytest.raises(UserError, match="is not a classifier"):
        denoiser.denoiser(experiment, None, scale=2.0)
    flow = tiny(process="schedules.RectifiedFlow()")
    with pytest.raises(UserError, match="RectifiedFlow"):
        guided_by("autoguidance('c')", plain, lambda other: (flow, None))


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_the_classifier_network(pool):
    net = HalfUNet(**NET, pool=pool)
    x, c_noise = (
        jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 1)), "float32"),
        jnp.array([0.1, 0.9]),
    )
    run = jax.jit(lambda params, x, c_noise: net.apply({"params": params}, x, c_noise))
    fresh = jax.jit(lambda: net.init(jax.random.key(0), x, c_noise)["params"])()
    assert (run(fresh, x, c_noise) == np.zeros((2, 3))).all()
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype("float32"), fresh
    )
    logits = run(params, x, c_noise)
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32
    assert (
        np.abs(run(params, x, c_noise + 0.3) - logits).max() > 1e-3
    )  # it depends on the noise level
    assert_allclose(
        run(params, x.at[1].set(0), c_noise)[0], logits[0], rtol=1e-4, atol=1e-5
    )  # an image is itself alone
    with pytest.raises(UserError, match="multiples of 2"):
        net.init(jax.random.key(0), x[:, :3], c_noise)


@pytest.mark.long
def test_train_a_classifier_and_sweep_with_it(tmp_path, capfd):
    """The two commands, tiny: both resume, and cells that are there are not made again."""

    def small():
        config = digits.get_config("vp")
        config.data.update(batch_size=16, data_dir=str(tmp_path / "data"))
        config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
        config.training.update(
            steps=2, log_every=1, eval_every=2, sample_every=0, checkpoint_every=1
        )
        config.sampler.update(nfe=2, batch_size=20)
        return config.lock()

    run, judge = tmp_path / "run", str(tmp_path / "classifier")
    assert train.train(small(), str(run))
    text = train_classifier.train_classifier(small(), judge, "mean")
    assert train_classifier.train_classifier(small(), judge, "mean") == text
    rows = files.load_json(f"{judge}/classifier.json")["rows"]
    assert [row["logsnr"] for row in rows] == list(range(-9, 12, 3))  # those that VP has
    assert all(abs(row["nats"] - math.log(10)) < 0.5 for row in rows)
    assert "eval_accuracy" in metrics.read_rows(f"{judge}/metrics.jsonl")[-1]

    asked = (["cfg()", f"classifier('{judge}')", "autoguidance(step=1)"], [1.0, 2.0], 20, "pixels")
    text = guidance_sweep.sweep_model(workdir.saved_config(run), run, *asked)
    assert "guidance sweep: 120/120" in capfd.readouterr().err
    assert guidance_sweep.sweep_model(workdir.saved_config(run), run, *asked) == text
    assert "guidance sweep" not in capfd.readouterr().err
    kept = files.load_json(run / "guidance_sweep.json")
    at_one = [
        row
        for row in kept["rows"]
        if row["scale"] == 1 and not row["guide"].startswith("classifier")
    ]
    assert at_one[0]["frechet"] == pytest.approx(
        at_one[1]["frechet"], rel=1e-3
    )  # scale 1 is the model itself
    assert len(kept["others"]["cfg()"]) == 0 and len(kept["others"]["autoguidance(step=1)"]) == 1
    assert (run / "guidance_sweep.png").exists() and (run / "guidance_sweep_strips.png").exists()


def test_scales_that_are_no_numbers_are_one_line():

    assert guidance_sweep.scales_of("2,0,1") == [0.0, 1.0, 2.0]
    with pytest.raises(UserError, match="write numbers with commas"):
        guidance_sweep.scales_of("1,b")
