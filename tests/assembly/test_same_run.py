"""What a resumed run and a command on a trained model may change, and what only later steps would
find.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly import components, data_record, datasets, preflight, same_run, train
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import parameterization
from diffusion_jax.training import loop, memory
from diffusion_jax.training.state import TrainState


def changed(**keys):
    config = digits.get_config("vp")
    for key, value in keys.items():
        section, name = key.split("__") if "__" in key else ("", key)
        (config[section] if section else config)[name] = value
    return config


@pytest.fixture
def run(tmp_path):
    """A workdir's records, without a model."""
    resolved = same_run.resolved(changed())
    files.save_json(tmp_path / "config.json", resolved)
    files.save_json(tmp_path / "provenance.json", {"config_hash": provenance.config_hash(resolved)})
    return tmp_path


FREE = {
    "training__steps": 900,
    "training__keep": 9,
    "training__keep_every": 100,
    "sampler__nfe": 7,
    "data__path": "elsewhere",
    "parallel": "pmap",
}

BOUND = {
    "training__steps_per_call": 2,
    "data__batch_size": 64,
    "label_dropout": 0.2,
    "seed": 1,
    "process": "schedules.EDM()",
}


def test_a_resumed_run_may_change_what_is_free_and_nothing_else(run):
    same_run.check_resumed(run, same_run.resolved(changed(**FREE)))
    for key, value in BOUND.items():
        with pytest.raises(UserError, match=rf"{key.replace('__', '.')} \(.* there, .* here\)"):
            same_run.check_resumed(run, same_run.resolved(changed(**{key: value})))


def used(run, config, same_network=True):
    same_run.check_usable(run, files.load_json(run / "config.json"), config, same_network)


def test_a_component_may_have_another_name_than_in_earlier_versions(run):
    config = digits.get_config("iddpm")
    record = same_run.resolved(config)
    record["objective"] = record["objective"].replace("learned_variance.", "elbo.")
    files.save_json(run / "config.json", record)
    same_run.check_resumed(run, same_run.resolved(config))
    used(run, config)


def test_without_its_config_a_run_is_resumed_by_that_config_alone(run):
    (run / "config.json").unlink()
    same_run.check_resumed(run, same_run.resolved(changed()))
    with pytest.raises(UserError, match="has checkpoints but no config.json"):
        same_run.check_resumed(run, same_run.resolved(changed(data__batch_size=64)))
    (run / "provenance.json").unlink()
    with pytest.raises(UserError, match="has checkpoints but no config.json"):
        same_run.check_resumed(run, same_run.resolved(changed()))


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("parameterization", "v()", "would not be the network that was trained"),
        ("model__width", 64, "would not be the network"),
        ("conditional", False, "would not be the network"),
        ("objective", "denoising.edm()", "would not be the network"),
        ("optimizer__learning_rate", 1.0, "only matters in training"),
        ("training__steps", 5, "only matters in training"),
        ("ema__ramp", 0.5, "only matters in training"),
        ("seed", 3, "only matters in training"),
    ],
)
def test_a_trained_model_is_used_as_it_was_trained(run, key, value, said):
    used(run, changed(sampler__nfe=5, data__path="there", model__dtype="bfloat16"))
    with pytest.raises(UserError, match=rf"config.{key.replace('__', '.')}=.* {said}"):
        used(run, changed(**{key: value}))


def test_another_process_is_refused_where_the_network_would_see_other_inputs(run):
    used(run, changed(process="schedules.EDM()"))
    with pytest.raises(
        UserError, match=r"config.process=schedules.EDM\(\) would not be the network"
    ):
        used(run, changed(process="schedules.EDM()"), same_network=False)


@pytest.mark.parametrize(
    "spec, theirs, ours, same",
    [
        ("eps()", "schedules.VP()", "schedules.EDM()", True),
        ("edm()", "schedules.EDM()", "schedules.RectifiedFlow()", True),
        ("x0()", "schedules.Cosine()", "discrete.ddpm()", True),
        ("v()", "schedules.VP()", "schedules.Cosine()", True),
        ("v()", "schedules.VP()", "schedules.EDM()", False),
        ("velocity()", "schedules.VP()", "schedules.Cosine()", False),
        ("eps(noise_input='time')", "schedules.VP()", "schedules.Cosine()", False),
        ("eps(input_scale=False)", "schedules.VP()", "schedules.EDM()", False),
        ("score()", "schedules.VP()", "schedules.EDM()", False),
        ("eps(noise_input='time')", "discrete.ddpm()", "schedules.VP()", True),
    ],
)
def test_same_network_is_decided_by_inputs_and_targets_at_equal_log_snr(spec, theirs, ours, same):
    theirs, ours = (build(components.PROCESSES, process) for process in (theirs, ours))
    assert (
        parameterization.same_network(build(components.PARAMETERIZATIONS, spec), theirs, ours)
        == same
    )


def test_a_state_larger_than_the_memory_is_refused_before_it_is_made():
    def state(width):
        shape = jax.ShapeDtypeStruct((width, width), jnp.float32)
        return TrainState(
            jax.ShapeDtypeStruct((), jnp.int32),
            {"w": shape},
            {"m": shape, "v": shape},
            {"5k": {"w": shape}},
            jax.eval_shape(lambda: jax.random.key(0)),
        )

    preflight.check_memory(state(1000))
    side = int(
        (memory.device_memory() / 4 / 5) ** 0.5
    )  # parameters, two moments, an average and the gradient
    preflight.check_memory(state(int(0.99 * side)))
    with pytest.raises(UserError, match="parameters: training needs .* GiB for its state"):
        preflight.check_memory(state(int(1.01 * side)))


def test_cadences_name_the_key_and_the_calls():
    loop.check_cadences(2, {"config.training.steps": 4})
    with pytest.raises(
        UserError, match="config.training.steps=5 must be a multiple of steps_per_call=2"
    ):
        loop.check_cadences(2, {"config.training.steps": 5})


def test_a_number_of_classes_that_the_data_do_not_have_is_refused():
    with pytest.raises(
        UserError, match="config.data.num_classes=7: the data set has 10 classes; set 0"
    ):
        datasets.dataset(changed(data__num_classes=7))
    assert datasets.dataset(changed(data__num_classes=10)).num_classes == 10


@pytest.mark.parametrize(
    "key, value, said",
    [
        (
            "training__accumulate",
            3,
            "config.training.accumulate=3 does not divide config.data.batch_size=128",
        ),
        (
            "training__best",
            "eval_lss",
            "unknown value of config.training.best 'eval_lss'; did you mean 'eval_loss'",
        ),
        ("sampler__grid", "karass", "unknown grid 'karass'"),
        ("sampler__ema", "7k", "unknown config.sampler.ema '7k'"),
    ],
)
def test_what_only_later_steps_need_is_checked_before_anything_is_written(
    key, value, said, tmp_path
):
    config = changed(**{key: value})
    config.model.update(width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
    with pytest.raises(UserError, match=said):
        train.train(config.lock(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_model_keeps_its_normalization_on_other_data(tmp_path):
    """Values of another scale are normalized as in training; images are not the same kind."""
    values = np.random.default_rng(0).normal(5, 2, (20, 6, 2)).astype(np.float32)
    np.save(tmp_path / "a.npy", values), np.save(tmp_path / "b.npy", 10 * values)
    trained = data.load("arrays", path=str(tmp_path / "a.npy"))
    files.save_json(tmp_path / "data.json", data_record.description(trained))
    about = files.load_json(tmp_path / "data.json", data_record.RULE)
    assert data_record.normalization(about) == trained.normalization
    other = data.load("arrays", path=str(tmp_path / "b.npy"))
    found = same_run.same_data(tmp_path, about, other, sizes=True)
    assert found.normalization == trained.normalization
    own = data.arrays(found.test)["image"]
    rows = trained.normalization.decode(data.arrays(trained.test)["image"])
    np.testing.assert_allclose(trained.normalization.decode(own), 10 * rows, rtol=1e-4)
    with pytest.raises(UserError, match="values of channel 0 are from .*, and were from"):
        same_run.same_data(tmp_path, about, other, sizes=True, values=True)
    assert same_run.same_data(tmp_path, about, trained, sizes=True, values=True)
    np.savez(tmp_path / "c.npz", data=np.zeros((20, 6, 2, 3), np.uint8))
    with pytest.raises(UserError, match="the values are normalized otherwise"):
        images = data.load("arrays", path=str(tmp_path / "c.npz"))
        same_run.same_data(tmp_path, about, images, sizes=True)
