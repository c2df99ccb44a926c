"""The condition builder with vectors and dense arrays: null, dropout, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import arrays, digits
from configs.base import network
from diffusion_jax.assembly import sample_conditions
from diffusion_jax.assembly.conditions import ArrayInputs, builder
from diffusion_jax.assembly.denoiser import usable_guidance
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset, normalization
from diffusion_jax.data.normalization import ConditionUnits
from diffusion_jax.data.sources import Arrays
from diffusion_jax.inverse import dense
from diffusion_jax.models import edm2, ncsnpp
from diffusion_jax.studies import given_arrays
from diffusion_jax.studies.weights import export_weights

RNG = np.random.default_rng(0)
VECTORS = RNG.normal([5, -40], [2, 8], (12, 2)).astype("f")
UNITS = ConditionUnits(normalization.measure([VECTORS], "standard", "float32", ""))
IMAGES = RNG.integers(0, 256, (12, 4, 4, 1)).astype(np.uint8)
KEYS = jax.random.split(jax.random.key(0), 12)


def built(dropout=0.0):
    inputs = ArrayInputs((4, 4, 1), UNITS, dense.lowres((4, 4, 1), 0, 2))
    return builder(3, None, dropout, inputs)


def batch():
    return {
        "image": jnp.asarray(IMAGES / 127.5 - 1, jnp.float32),
        "label": jnp.arange(12) % 3,
        "condition": jnp.asarray(UNITS.vector.encode(VECTORS)),
    }


def test_a_condition_is_kept_or_lost_as_a_whole():
    """Lost examples have exactly the null condition: no class, a vector of zeros, nothing seen."""
    conditions = built(0.5)
    whole, some = (conditions.of_batch(batch(), KEYS, train) for train in (False, True))
    null = conditions.null(12)
    assert null.keys() == whole.keys() == {"label", "vector", "concat"}
    np.testing.assert_array_equal(whole["vector"][:, :2], UNITS.vector.encode(VECTORS))
    np.testing.assert_array_equal(whole["vector"][:, 2], 1)  # it is known
    lost = np.asarray(some["vector"][:, 2]) == 0
    assert 0 < lost.sum() < 12
    for name, values in some.items():
        for i in range(12):
            np.testing.assert_array_equal(values[i], (null if lost[i] else whole)[name][i])
    assert (
        not np.any(null["vector"])
        and not np.any(null["concat"])
        and set(np.asarray(null["label"]).tolist()) == {3}
    )
    assert {n: x.shape for n, x in conditions.columns(5).items()} == {
        "label": (5,),
        "condition": (5, 2),
    }


def config_of(**changes):
    config = digits.get_config("edm")
    config.model = network("unet.UNet", width=8, multipliers=(1,), blocks=1, attention=())
    config.update(changes)
    return config


def model(**data_keys):
    config = config_of()
    config.data.update(data_keys)
    return assemble(config, (4, 4, 1), 3, units=UNITS)


@pytest.fixture(scope="module")
def both():
    return model(condition="condition", dense="lowres(2)")


def dataset():
    source = Arrays(IMAGES, np.arange(12) % 3, condition=UNITS.vector.encode(VECTORS))
    return Dataset("arrays", source, source, (4, 4, 1), 3, ("a", "b", "c"), units=UNITS)


def test_the_network_has_places_for_both_and_samples_are_judged_by_test_conditions(both):
    assert both.model.vector == 3 and both.model.extra_channels == 1
    labels, cond = sample_conditions.for_judging(both, dataset(), 15)
    np.testing.assert_array_equal(labels, np.resize(np.arange(12) % 3, 15))
    np.testing.assert_array_equal(cond["vector"][12:], cond["vector"][:3])
    params = jax.eval_shape(
        both.model.init,
        jax.random.key(0),
        jnp.zeros((2, 4, 4, 1)),
        jnp.zeros(2),
        cond and {name: x[:2] for name, x in cond.items()},
    )["params"]
    assert params["condition"]["vector_1"]["kernel"].shape == (3, 32)
    assert params["first"]["kernel"].shape == (3, 3, 2, 8)


def given(both, condition="", dense="", labels=(), count=4):
    loads = []

    def load():
        loads.append(1)
        return dataset()

    return given_arrays.requested(both, load, labels, (), condition, dense, count), len(loads)


def test_conditions_are_typed_read_or_those_of_test_examples(both, tmp_path):
    np.savez(tmp_path / "a.npz", condition=VECTORS[:3], images=IMAGES[4:6])
    file = str(tmp_path / "a.npz")
    own, loads = given(both)
    np.testing.assert_allclose(own.vector, VECTORS[:4], rtol=1e-5)
    np.testing.assert_array_equal(own.truth, IMAGES[:4])
    assert loads == 1 and own.labels.tolist() == [0, 1, 2, 0]
    typed, loads = given(both, "1.5,-20;3,-30", file, [2])
    np.testing.assert_allclose(typed.vector, [[1.5, -20], [3, -30]] * 2, rtol=1e-5)
    np.testing.assert_array_equal(typed.truth, IMAGES[[4, 5, 4, 5]])
    assert loads == 0 and typed.labels.tolist() == [2] * 4
    small = dense.reduced(jnp.asarray(IMAGES[4:6], jnp.float32), 2)
    np.savez(tmp_path / "b.npz", images=np.rint(small).astype(np.uint8))
    read, _ = given(both, file, str(tmp_path / "b.npz"))
    np.testing.assert_allclose(read.vector, VECTORS[[0, 1, 2, 0]], rtol=1e-5)
    np.testing.assert_allclose(read.cond["concat"], typed.cond["concat"], atol=0.005)
    assert read.truth is None
    nothing, _ = given(both, "none", "none")
    assert np.isnan(nothing.vector).all() and not np.any(nothing.cond["concat"])


def test_a_mask_of_a_file_is_that_of_the_condition(tmp_path):
    painted = model(dense="inpaint")
    mask = np.zeros((1, 4, 4, 1), np.uint8)
    mask[:, :2] = 1
    np.savez(tmp_path / "a.npz", images=IMAGES[:2], mask=mask)
    found = given_arrays.requested(painted, dataset, [0], (), "", str(tmp_path / "a.npz"), 2)
    np.testing.assert_array_equal(found.cond["concat"][..., 1:], np.repeat(mask, 2, 0))
    np.testing.assert_array_equal(found.seen[:, :2], IMAGES[:2, :2])
    assert set(found.seen[:, 2:].ravel()) == {128}
    for wrong in (mask[:, :2], mask[0], mask.repeat(3, 0), mask.repeat(2, -1), 255 * mask):
        np.savez(tmp_path / "b.npz", images=IMAGES[:2], mask=wrong)
        with pytest.raises(UserError, match="'mask' has shape .* and zeros .M, 4, 4, 1."):
            given_arrays.requested(painted, dataset, [0], (), "", str(tmp_path / "b.npz"), 2)


@pytest.mark.parametrize(
    "condition, words",
    [
        ("1", "it has 1 numbers, and this model takes 2, as in --condition="),
        ("1,2,3", "it has 3 numbers"),
        ("a,b", "write numbers with commas"),
        ("1,2;3", "write numbers with commas"),
        ("1,nan", "must be finite"),
        ("none.npz", "cannot read 'none.npz'"),
    ],
)
def test_numbers_that_do_not_fit_are_one_line(both, condition, words):
    with pytest.raises(UserError, match=words) as error:
        given(both, condition)
    assert "\n" not in str(error.value)


def test_files_that_do_not_fit_are_one_line(both, tmp_path):
    for name, arrays_, words in (
        ("a", {"images": IMAGES[:, :3]}, r"\(M, 4, 4, 1\) or \(M, 2, 2, 1\)"),
        ("b", {"x": IMAGES}, "nothing of that name"),
        ("c", {"images": IMAGES.astype("f")}, "must be uint8"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays_)
        with pytest.raises(UserError, match=words):
            given(both, "", str(tmp_path / f"{name}.npz"))
    (tmp_path / "d.png").write_text("no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        given(both, "", str(tmp_path / "d.png"))
    np.savez(tmp_path / "e.npz", condition=1.5)
    with pytest.raises(UserError, match="it has 1 numbers, and this model takes 2"):
        given(both, str(tmp_path / "e.npz"))
    five = both._replace(shape=(4, 4, 5))
    with pytest.raises(UserError, match="are no pictures"):
        given(five, "1,2", str(tmp_path / "d.png"))


def test_what_no_array_conditions_takes_none_of_them():
    plain = assemble(config_of(), (4, 4, 1), 3)
    for flags in (("1,2", ""), ("", "a.npz")):
        with pytest.raises(UserError, match="was trained without such a condition"):
            given_arrays.check(plain, *flags)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"name": "ncsnpp.NCSNpp", "data": {"dense": "lowres(2)"}},
            "config.data.dense=lowres.2.: ncsnpp.NCSNpp reads no such condition; use unet.UNet",
        ),
        ({"name": "mmdit.MMDiT"}, "mmdit.MMDiT reads no such condition; use .* or edm2.EDM2UNet"),
        ({"data": {"dense": "lowres(3)"}}, "does not divide samples"),
        ({"data": {"dense": "lowress(2)"}}, "did you mean 'lowres'"),
        ({"data": {"dense": "array"}}, "channels of the array are not known"),
        ({"units": ConditionUnits()}, "number of its columns is not known"),
        ({"data": {"dense": "lowres(2)", "augment": 0.1}}, "distorts images and not their cond"),
    ],
)
def test_configs_that_do_not_fit(change, words):
    config = config_of()
    config.data.condition = "condition"
    config.data.update(change.get("data", {}))
    if "name" in change:
        config.model = network(change["name"], width=8)
    with pytest.raises(UserError, match=words):
        assemble(config, (4, 4, 1), 3, units=change.get("units", UNITS))


@pytest.mark.parametrize("name", ["ncsnpp.NCSNpp", "edm2.EDM2UNet"])
def test_the_networks_of_edm_read_vectors(name):
    """The embedding depends on what is known, and a missing entry is nothing known."""
    config = config_of()
    config.data.condition, config.model = "condition", network(name, width=8)
    assert assemble(config, (8, 8, 1), 3, units=UNITS).model.vector == 3
    module, few = {
        "ncsnpp.NCSNpp": (ncsnpp._Condition, (8, 8, 0, 0, "positional", 16.0, False, 3)),
        "edm2.EDM2UNet": (edm2._Condition, (8, 8, 0, 0.5, False, 3, "fourier")),
    }[name]
    module, more = module(*few), (2,) if name == "ncsnpp.NCSNpp" else ()
    values = jnp.array([[0.5, -1.0, 1.0], [2.0, 0.0, 1.0]])
    c_noise = jnp.array([0.1, 0.1])
    params = module.init(jax.random.key(0), c_noise, {}, *more)

    def embedded(cond):
        return np.asarray(module.apply(params, c_noise, cond, *more))

    known, null = embedded({"vector": values}), embedded({"vector": jnp.zeros((2, 3))})
    np.testing.assert_array_equal(null, embedded({}))
    np.testing.assert_array_equal(null[0], null[1])
    assert np.abs(known[0] - known[1]).max() > 1e-3 and np.abs(known - null).max() > 1e-3


def test_models_of_arrays_are_not_exported_as_networks_without_them():
    for other, name, words in (
        (model(condition="condition"), "UNet2DModel", "config.data.condition=condition: UNet2DM"),
        (model(dense="lowres(2)"), "UNet2DModel", r"config.data.dense=lowres\(2\): UNet2DModel"),
        (model()._replace(shape=(4, 8, 1)), "DiT", r"DiT is .* of square images.* \(4, 8, 1\)"),
        (model()._replace(shape=(8, 2)), "UNet2DModel", r"is a network of images.* \(8, 2\)"),
    ):
        with pytest.raises(UserError, match=words):
            export_weights.need_exportable(other, name)
    export_weights.need_exportable(model()._replace(shape=(4, 8, 1)), "UNet2DModel")


def test_guidance_needs_a_condition_of_any_kind(capsys):
    """Vectors count as one; without any the scale of a preset is not used."""
    config = arrays.get_config()
    config.sampler.guidance = 2.0
    assert usable_guidance(config, 0).sampler.guidance == 1.0
    config.data.condition = "condition"
    assert usable_guidance(config, 0).sampler.guidance == 2.0
