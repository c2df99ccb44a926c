"""Steps that are not finite: the run stops, skips them or rolls back, and repeats exactly."""

from __future__ import annotations

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.assembly import datasets, experiment, train, trainer, workdir
from diffusion_jax.assembly.kinds import diffusion
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies import repro
from diffusion_jax.training import metrics, nonfinite, restoring
from tests.training.kill_battery import fingerprint
from tests.training.tiny_run import (
    STEPS,
    config,
    ends_the_same,
)


def poison(patch, elsewhere=0.0):
    """Make the gradient of one example NaN, the sixth of the batch of step 14; its loss is finite.

    elsewhere: is added to the example that is looked for. Where there are no data no gradient is
      NaN, and the compiled program is the same.
    """
    source = datasets.dataset(config()).train
    victim = jnp.asarray(data.batches(source, batch_size=64, seed=0)(14)["image"][5]) + elsewhere
    honest = diffusion.KIND.loss

    def loss_fn(model):
        loss = honest(model)

        def broken(params, batch, keys, now):
            losses, extra = loss(params, batch, keys, now)
            met = jnp.all(batch["image"] == victim, axis=-1)
            zero = jax.tree.leaves(params)[0].ravel()[0] * 0
            return losses + jnp.where(
                met, jnp.sqrt(jnp.where(met, zero, 1.0)), 0.0
            ), extra  # the root of 0 has no slope

        return broken

    kind = diffusion.KIND._replace(loss=loss_fn)
    patch.setattr(experiment, "KINDS", dict.fromkeys(experiment.KINDS, kind))


@pytest.fixture
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """`straight` by the poisoned program that never meets its victim: another program might round
    otherwise.
    """
    root = tmp_path_factory.mktemp("unharmed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, elsewhere=100.0)
        assert train.train(config(), str(root))
    return root, fingerprint(root, STEPS)


def interrupted(chosen, root, at, steps):
    """Train to the end, by SIGTERM at each of these positions and resuming."""
    for step in steps:
        at(step, lambda: signal.raise_signal(signal.SIGTERM))
        assert not train.train(chosen, str(root))
    assert train.train(chosen, str(root))


def test_stop_leaves_the_last_good_checkpoint_and_a_report(poisoned, tmp_path):
    root = tmp_path / "run"
    with pytest.raises(
        nonfinite.NonFinite, match=r"the gradient \(the loss is finite\) is not finite at step 14"
    ) as caught:
        train.train(config(), str(root))
    assert f"the last good checkpoint is '{root}/checkpoints/12'" in str(caught.value)
    report = json.loads((root / "nonfinite" / "step_14" / "report.json").read_text())
    assert (
        report["what"] == "gradient"
        and report["examples"] == []
        and len(report["losses"]) == len(report["t"]) == 64
    )
    assert report["start"]["checkpoint"] == 12 and report["command"].endswith(
        f"--workdir={root} --step=14"
    )
    with np.load(root / "nonfinite" / "step_14" / "batch.npz") as batch:
        wanted = data.batches(datasets.dataset(config()).train, batch_size=64, seed=0)(14)["image"]
        np.testing.assert_array_equal(batch["image"], wanted)


def test_a_run_that_was_stopped_and_fixed_ends_the_same(unharmed, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(nonfinite.NonFinite):
        poison(patch)
        train.train(config(), str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, elsewhere=100.0)
        assert ends_the_same(tmp_path / "run", unharmed)


def test_skip_counts_the_step_and_goes_on_exactly(unharmed, poisoned, tmp_path, at, capfd):
    chosen = config(training__on_nonfinite="skip")
    assert train.train(chosen, str(tmp_path / "a"))
    rows = metrics.read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("skipped")] == [15] and rows[4]["skipped"] == 1
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row) and np.isfinite(
        rows[4]["grad_norm"]
    )
    assert "step 14 is not finite: see " in capfd.readouterr().err
    interrupted(chosen, tmp_path / "b", at, (14, 17))
    assert fingerprint(tmp_path / "a", STEPS) == fingerprint(tmp_path / "b", STEPS) != unharmed[1]


def test_rollback_passes_over_the_step_and_is_exact(unharmed, poisoned, tmp_path, at, capfd):
    """From checkpoint 12 on, with the data from position 15 on and another key; whatever else stops
    the run.
    """
    chosen = config(training__on_nonfinite="rollback")
    assert train.train(chosen, str(tmp_path / "a"))
    assert "rolling back to step 12 (rollback attempt 1 of 3)" in capfd.readouterr().err
    parts = trainer.training(experiment.assemble(chosen, (2,)))
    template = parts.runner.template(parts.init, jax.random.key(0))
    end = restoring.restore(tmp_path / "a" / "checkpoints", template)
    assert end.extra["rollback"] == {"to": 12, "tries": 1, "shift": 3}
    begin = restoring.restore(unharmed[0] / "checkpoints", template).state.key
    assert jnp.all(
        jax.random.key_data(end.state.key)
        == jax.random.key_data(jax.random.fold_in(begin, 2**32 - 1))
    )
    rows = metrics.read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(3, STEPS + 1, 3))
    # 13: before the step fails; 16: after the run has rolled back
    interrupted(chosen, tmp_path / "b", at, (13, 16))
    assert fingerprint(tmp_path / "a", STEPS) == fingerprint(tmp_path / "b", STEPS) != unharmed[1]


@pytest.mark.parametrize(
    "what, ending",
    [
        ("stop", "lower optimizer.learning_rate or optimizer.clip"),
        ("skip", "lower optimizer.learning_rate or optimizer.clip"),
        ("rollback", "it failed after each of 3 rollbacks to step 0"),
    ],
)
def test_a_run_that_diverges_ends_under_each_and_its_step_can_be_repeated(
    tmp_path, capfd, what, ending
):
    """No injection: the learning rate is absurd, and the weights overflow."""
    root = tmp_path / "run"
    chosen = config(
        optimizer__name="sgd",
        optimizer__learning_rate=1000.0,
        optimizer__warmup=0,
        optimizer__clip=0.0,
        optimizer__weight_decay=None,
        optimizer__b1=None,
        optimizer__b2=None,
        training__on_nonfinite=what,
    )
    with pytest.raises(nonfinite.NonFinite) as caught:
        train.train(chosen, str(root))
    message = str(caught.value)
    assert message.endswith(ending) and "\n" not in message
    assert ("(10 steps in a row were skipped)" in message) == (what == "skip")
    assert len(list((root / "nonfinite").iterdir())) >= 1
    if what == "stop":
        capfd.readouterr()
        assert repro.is_repeated(workdir.saved_config(root), str(root), caught.value.step)
        printed = capfd.readouterr().out
        assert (
            "not finite again, the same numbers, bit for bit\nevery layer's output is finite"
            in printed
        )
        with pytest.raises(
            UserError, match=rf"no report of this step in .*; there are: {caught.value.step}$"
        ):
            repro.is_repeated(workdir.saved_config(root), str(root), 999)


def test_the_first_layer_that_overflows_is_named():
    model = experiment.assemble(config(), (2,))
    begin = trainer.training(model).init(jax.random.key(0))
    layers = sorted(begin.params)
    begin.params[layers[1]]["kernel"] = jnp.full_like(begin.params[layers[1]]["kernel"], 1e38)
    batch = data.batches(datasets.dataset(config()).train, batch_size=64, seed=0)(0)
    lines = repro._activations(model, begin, batch, 0).splitlines()
    assert lines[0] == f"the first output that is not finite is that of {layers[1]}", lines


def test_another_word_for_on_nonfinite(tmp_path):
    with pytest.raises(
        UserError,
        match="unknown value of config.training.on_nonfinite 'skipp'; did you mean 'skip'",
    ):
        train.train(config(training__on_nonfinite="skipp"), str(tmp_path / "run"))
