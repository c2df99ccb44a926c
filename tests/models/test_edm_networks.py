"""The networks of EDM and EDM2, on seeded weights, equal those of their authors' programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cifar10, digits
from diffusion_jax.assembly import components, denoiser
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Prediction
from diffusion_jax.models import edm2, magnitude, ncsnpp
from diffusion_jax.objectives import denoising, uncertainty
from diffusion_jax.pretrained import layouts, networks, published
from diffusion_jax.processes import schedules
from diffusion_jax.training import ema, state, step
from tests.fixtures.seeded_weights import normal, weights
from tests.models.networks import shapes

FILE = Path(__file__).parents[1] / "fixtures" / "edm_networks.npz"
with np.load(FILE) as saved:
    OUT = {key: value for key, value in saved.items() if key != "cases"}
    CASES = json.loads(str(saved["cases"]))

CLASSES = {"adm": "DhariwalUNet", "edm2/defaults": "EDM2", "edm2/options": "EDM2"}
CLASSES["edm2/double_norm"] = "EDM2"
OURS = {"edm2/double_norm": {"double_norm": True, "noise_embedding": "positional"}}
LABELS = np.array([0, 2, 3])  # the last is the null label


def converted(case):
    """The network of a case, and its seeded weights."""
    network = networks.network(CLASSES.get(case, "SongUNet"))
    options, shape = published.read_config(network, CASES[case])
    options |= OURS.get(case, {})
    module = build(components.MODELS, network.model, **options)
    abstract, _ = shapes(module, (1, *shape))
    wanted = {path: leaf.shape for path, leaf in layouts.flat(abstract).items()}
    table = layouts.table(network, options | {"side": shape[0]}, wanted)
    blank = {path: np.broadcast_to(np.int8(0), size) for path, size in wanted.items()}
    prefixed = case.startswith("edm2") and "unet."  # the names of a whole file
    theirs = {name: a.shape for name, a in layouts.to_theirs(table, blank).items()}
    names = {
        name: name if not prefixed or name.startswith("logvar") else prefixed + name
        for name in theirs
    }
    drawn = weights({names[name]: size for name, size in theirs.items()})
    tensors = {name: drawn[names[name]] for name in theirs}
    ours = layouts.to_ours(table, tensors, wanted)
    back = layouts.to_theirs(table, ours)
    assert all(np.array_equal(back[name], tensors[name]) for name in theirs)
    params = jax.tree.unflatten(jax.tree.structure(abstract), [ours[path] for path in wanted])
    return module, params


RARE = ("skip", "residual_of_blocks", "edm2/options")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * (case in RARE)) for case in CASES]
)
def test_outputs_equal_those_of_the_authors_program(case):
    module, params = converted(case)
    x = normal("x", (3, 2, 8, 8)).transpose(0, 2, 3, 1)
    c_noise = np.log(np.float32([0.03, 0.7, 40.0])) / 4
    cond = {"label": LABELS, "augment": normal("augment", (3, 2))}
    extra = {"log_variance": True} if case.startswith("edm2") else {}
    found = jax.jit(lambda p: module.apply({"params": p}, x, c_noise, cond, **extra))(params)
    expected = OUT[f"{case}/out"].transpose(0, 2, 3, 1)
    if extra:
        found, more = found
        np.testing.assert_allclose(more["log_variance"], OUT[f"{case}/u"], atol=1e-4)
    assert np.abs(expected).max() > 1 / 4
    np.testing.assert_allclose(found, expected, atol=1e-4)


def count(module, shape):
    """The number of learned parameters: without frequencies and phases, which have no gradient."""
    x, c_noise = jnp.zeros(shape), jnp.zeros(shape[:1])
    params = layouts.flat(jax.eval_shape(module.init, jax.random.key(0), x, c_noise)["params"])
    fixed = ("frequencies", "phases")
    return sum(math.prod(leaf.shape) for path, leaf in params.items() if not path.endswith(fixed))


def test_the_networks_have_the_parameters_of_the_papers():
    """What their programs count: EDM's networks for CIFAR-10 with augmentation labels (55.7M and
    56.4M), and EDM2's for latents of ImageNet-512 (125M to 1.5G, table 3), with u(sigma).
    """
    images, latents = (1, 32, 32, 3), (1, 64, 64, 4)
    assert count(ncsnpp.NCSNpp(augment=9), images) == 55_733_891
    config = cifar10.get_config("edm,ncsnpp").model.to_dict() | {"augment": 9}
    assert count(build(components.MODELS, config.pop("name"), **config), images) == 56_397_827
    size = edm2.EDM2UNet(num_classes=1000, uncertainty=128, **edm2.SIZES["XS"])
    assert count(size, latents) == 124_713_253


@pytest.mark.long
@pytest.mark.parametrize(
    "size, expected",
    [("S", 280_212_837), ("L", 777_498_085), ("XXL", 1_523_164_773)],
)
def test_the_larger_networks_of_edm2(size, expected):
    module = edm2.EDM2UNet(num_classes=1000, uncertainty=128, **edm2.SIZES[size])
    assert count(module, (1, 64, 64, 4)) == expected


SMALL = {
    ncsnpp.NCSNpp: dict(width=8, multipliers=(1, 1), blocks=1, attention=()),
    edm2.EDM2UNet: dict(width=8, multipliers=(1, 1), blocks=1, attention=(), head_width=8),
}


@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.__name__)
def test_options_of_all_networks(network):
    """Remat, bfloat16 and a second time leave the names, the shapes and the types as they are."""
    plain, out = shapes(network(**SMALL[network]), (2, 8, 8, 3))
    assert (out.shape, out.dtype) == ((2, 8, 8, 3), jnp.float32)
    options = dict(remat="dots", dtype="bfloat16", attention_impl="plain", second_time=True)
    twice, out = shapes(network(**SMALL[network], **options), (2, 8, 8, 3))
    assert (out.shape, out.dtype) == ((2, 8, 8, 3), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(twice))
    before, after = layouts.flat(plain), layouts.flat(twice)
    assert all(after[path].shape == leaf.shape for path, leaf in before.items())
    more = after.keys() - before.keys()
    assert more and all(path.startswith("condition/to") for path in more)


@pytest.mark.parametrize(
    "module, shape, words",
    [
        (ncsnpp.NCSNpp(progressive_input="residuals"), (1, 8, 8, 1), ["did you mean 'residual'"]),
        (ncsnpp.NCSNpp(multipliers=(1, 1)), (1, 8, 9, 1), ["8 x 9", "multiples of 2"]),
        (ncsnpp.NCSNpp(resample_filter=(1, 2, 1)), (1, 8, 8, 1), ["(1, 2, 1)", "even number"]),
        (ncsnpp.NCSNpp(), (1, 2), ["(1, 2)", "MLP"]),
        (edm2.EDM2UNet(dtype="half"), (1, 8, 8, 1), ["'half'", "bfloat16"]),
        (edm2.EDM2UNet(), (1, 12, 12, 1), ["12 x 12", "multiples of 8"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(module, shape, words):
    with pytest.raises(UserError) as error:
        shapes(module, shape)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_magnitudes_are_preserved():
    """Unit Gaussian inputs give outputs of mean square 1 (to the error of 4,096 draws, 2 %)."""
    a, b = normal("a", (4096, 8)), normal("b", (4096, 24))
    cat = magnitude.mp_cat(a, b, 0.3)
    found = {
        "silu": magnitude.mp_silu(a),
        "sum": magnitude.mp_sum(a, b[:, :8], 0.3),
        "cat": cat,
    }
    for name, value in found.items():
        assert np.mean(np.square(value)) == pytest.approx(1, abs=0.03), name
    # the shares of the two parts of a concatenation are 1 - t and t
    parts = [np.sqrt(np.sum(np.square(part)) / 4096) for part in np.split(cat, [8], axis=-1)]
    assert parts[1] / parts[0] == pytest.approx(0.3 / 0.7, rel=0.03)


def test_training_keeps_the_weights_of_their_program():
    """Four steps of Adam with forced weight normalization: the stored weights after each, before
    the next normalization, and their average.
    """
    layer = magnitude.MPLayer(4)

    def loss(params, batch, keys, now):
        out = layer.apply({"params": params}, batch["x"])
        return jnp.mean(jnp.square(out - batch["y"]), axis=-1), {}

    adam = optax.adam(0.1, b1=0.9, b2=0.99)
    average = ema.target(0.9)
    constrain = edm2.EDM2UNet().constrain
    run = jax.jit(step.make_train_step(loss, adam, average, constrain=constrain))
    params = {"kernel": jnp.asarray(normal("layer", (4, 3)).T)}
    now = state.init_state(params, adam, average, jax.random.key(0))
    for number in range(4):
        batch = {"x": normal(f"x{number}", (8, 3)), "y": normal(f"y{number}", (8, 4))}
        now, _ = run(now, batch)
        kept, averaged = now.params["kernel"].T, now.ema["target"]["kernel"].T
        np.testing.assert_allclose(kept, OUT["training/weights"][number], atol=1e-5)
        np.testing.assert_allclose(averaged, OUT["training/ema"][number], atol=1e-5)
    length = np.sqrt(np.mean(np.square(kept), axis=1))
    assert np.abs(length - 1).max() > 1e-3  # the update comes after the projection
    unit = constrain(now.params)["kernel"]
    np.testing.assert_allclose(np.mean(np.square(unit), axis=0), 1, atol=1e-3)


def test_the_uncertainty_weights_the_loss():
    """L / exp(u) + u has its minimum over u at u = log L; without u the objective says so."""
    process = schedules.EDM()
    objective, plain = uncertainty.edm2(process), denoising.edm(process, -0.4, 1.0)
    noised = objective.draw(jax.random.key(0), jnp.zeros((4, 2, 2, 1)))

    def denoise(u):
        wrong = Prediction(noised.x0, noised.eps + 0.1)
        return lambda x_t, t, cond=None: wrong._replace(log_variance=u)

    losses = plain.loss(denoise(None), noised)
    best = objective.loss(denoise(jnp.log(losses)), noised)
    np.testing.assert_allclose(best, 1 + np.log(losses), rtol=1e-5)
    slope = jax.grad(lambda u: jnp.sum(objective.loss(denoise(u), noised)))(jnp.log(losses))
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    with pytest.raises(UserError, match="uncertainty=128"):
        objective.loss(denoise(None), noised)


def test_a_config_trains_the_network_with_its_uncertainty():
    """The loss of a config, traced: it asks the network for u, and samplers do not."""
    config = digits.get_config("edm")
    config.model = components.network("edm2.EDM2UNet", uncertainty=4, **SMALL[edm2.EDM2UNet])
    config.objective = "uncertainty.edm2()"
    experiment = assemble(config, (8, 8, 1), 10)
    params = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    assert {"uncertainty_noise", "uncertainty_last"} <= params.keys()
    batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}

    def run(params):
        keys = jax.random.split(jax.random.key(0), 4)
        losses, metrics = experiment.kind.loss(experiment)(params, batch, keys, step.Now(0, {}))
        denoise = denoiser.denoiser(experiment, params, clip="none")
        return losses, metrics, denoise(batch["image"], 0.5).log_variance

    losses, metrics, sampled = jax.eval_shape(run, params)
    assert losses.shape == metrics["level"].shape == (4,) and sampled is None
