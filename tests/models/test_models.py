"""Networks: shapes, types, what each option promises, and one battery for all (U-Net and MLP)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import embeddings, layers, remat
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.unet import UNet

TINY = dict(width=8, multipliers=(1, 2), blocks=1, attention=(4,), head_width=8)

NETS = {
    "unet": (
        UNet(num_classes=3, dropout=0.5, attention_impl="plain", **TINY | {"attention": ()}),
        (4, 8, 8, 1),
    ),
    "mlp": (MLP(num_classes=3, dropout=0.5, width=16, blocks=2), (4, 2)),
}

each_net = pytest.mark.parametrize("name", NETS)


def shapes(module, shape, cond=None):
    """Abstract parameters and output: nothing is compiled."""
    x, c = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, c, cond)
    return variables["params"], jax.eval_shape(module.apply, variables, x, c, cond)


def count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(shape):
    return normal(1, shape), np.linspace(0.1, 0.9, shape[0], dtype=np.float32)


@functools.cache
def params_of(name):
    """Parameters without zeros, so that every path of the network carries signal. Compiles nothing."""
    abstract, _ = shapes(*NETS[name])
    random = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.5 if leaf.ndim == 1 else math.prod(leaf.shape[:-1]) ** -0.5
        return scale * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(draw, abstract)


@functools.cache
def forward(name):
    module, _ = NETS[name]
    apply = jax.jit(
        lambda params, x, c, labels: module.apply({"params": params}, x, c, {"label": labels})
    )
    return lambda params, x, c, labels: np.asarray(
        apply(params, x, c, np.asarray(labels, np.int32))
    )


def initial(name, keep):
    """The initial values of the parameters whose path keep accepts; XLA drops the others, whose
    compilation is slow.
    """
    module, shape = NETS[name]

    def init(x, c):
        leaves = jax.tree_util.tree_leaves_with_path(module.init(jax.random.key(0), x, c)["params"])
        return {
            path: leaf
            for p, leaf in leaves
            if keep(path := jax.tree_util.keystr(p, simple=True, separator="/"))
        }

    return jax.jit(init)(*inputs(shape))


# ---- shapes and options
@pytest.mark.parametrize(
    "scale_shift, updown, learn_variance, num_classes",
    [
        (s, u, *rest)
        for s in (True, False)
        for u in ("conv", "resblock")
        for rest in ((True, 0), (False, 10))
    ],
)
def test_unet_shapes_for_all_styles(scale_shift, updown, learn_variance, num_classes):
    options = dict(
        scale_shift=scale_shift,
        updown=updown,
        learn_variance=learn_variance,
        num_classes=num_classes,
    )
    params, out = shapes(UNet(**options, **TINY), (2, 8, 12, 3))
    assert out.shape == (2, 8, 12, 6 if learn_variance else 3) and out.dtype == jnp.float32
    assert ("label" in params["condition"]) == (num_classes > 0)


def test_every_option_changes_the_network_it_names():
    base, _ = shapes(UNet(**TINY), (2, 16, 16, 1))
    changed = dict(
        stem=2,
        blocks=2,
        attention=(16, 8),
        multipliers=(1, 2, 4),
        updown="resblock",
        scale_shift=False,
    )
    for name, value in changed.items():
        params, out = shapes(UNet(**{**TINY, name: value}), (2, 16, 16, 1))
        assert count(params) != count(base), name
        assert out.shape == (2, 16, 16, 1)
    at = {
        k
        for k in shapes(UNet(**{**TINY, "attention": (8,)}), (2, 16, 16, 1))[0]
        if k.endswith("attention")
    }
    assert at == {"down_1_0_attention", "middle_attention", "up_1_0_attention", "up_1_1_attention"}


def test_extra_channels_are_seen_by_the_first_convolution_only():
    cond = {"concat": jax.ShapeDtypeStruct((2, 8, 8, 2), jnp.float32)}
    params, out = shapes(UNet(extra_channels=2, **TINY), (2, 8, 8, 3), cond)
    plain, _ = shapes(UNet(**TINY), (2, 8, 8, 3))
    assert out.shape == (2, 8, 8, 3)
    assert count(params) - count(plain) == 3 * 3 * 2 * TINY["width"]


def test_ddpm_cifar10_has_the_parameters_of_the_paper():
    """35.7M in appendix B of Ho et al. 2020; their public weights as google/ddpm-cifar10-32 are
    35,746,307 numbers.
    """
    module = UNet(
        width=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        attention=(16,),
        head_width=None,
        scale_shift=False,
    )
    params, _ = shapes(module, (1, 32, 32, 3))
    assert count(params) == 35_746_307


def test_modules_can_be_static_arguments():
    assert hash(UNet(**TINY)) == hash(UNet(**TINY)) and UNet(**TINY) != UNet(
        **{**TINY, "blocks": 2}
    )


@pytest.mark.parametrize(
    "options, shape, cond, words",
    [
        (dict(stem=2), (1, 6, 8, 1), None, ["6 x 8", "multiples of 4", "resize or pad"]),
        (dict(multipliers=(1, 1, 1)), (1, 8, 10, 1), None, ["8 x 10", "multiples of 4"]),
        (dict(updown="convs"), (1, 8, 8, 1), None, ["'convs'", "did you mean 'conv'"]),
        (dict(dtype="float16"), (1, 8, 8, 1), None, ["'float16'", "bfloat16"]),
        (dict(attention_impl="flash"), (1, 8, 8, 1), None, ["'flash'", "fused, plain"]),
        (dict(noise_embedding="sinus"), (1, 8, 8, 1), None, ["'sinus'", "'sinusoidal'"]),
        (dict(head_width=6), (1, 8, 8, 1), None, ["head_width=6", "16 channels"]),
        (dict(extra_channels=1), (1, 8, 8, 1), None, ["extra_channels=1", "has 0"]),
        (dict(), (1, 8, 8, 1), {"concat": np.zeros((1, 8, 8, 2))}, ["extra_channels=0", "has 2"]),
        (dict(), (4, 2), None, ["(4, 2)", "MLP"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, shape, cond, words):
    with pytest.raises(UserError) as error:
        shapes(UNet(**{**TINY, **options}), shape, cond)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_mlp_refuses_images_and_widens_for_the_variance():
    with pytest.raises(UserError, match="U-Net"):
        shapes(MLP(), (1, 8, 8, 1))
    assert shapes(MLP(learn_variance=True), (4, 3))[1].shape == (4, 6)


# ---- the battery
@each_net
def test_output_is_exactly_zero_at_init(name):
    """The last layer starts at zero; whatever the rest computes, the output is zero."""
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    labels = np.array([0, 1, 2, 3])
    last = initial(name, lambda path: path.startswith("last/"))
    out = forward(name)(
        params | {"last": {k.split("/")[1]: v for k, v in last.items()}}, x, c, labels
    )
    assert out.shape == x.shape and not np.any(out)
    assert np.all(
        np.abs(forward(name)(params, x, c, labels)).max(axis=tuple(range(1, x.ndim))) > 1e-2
    )


def test_branches_start_at_zero_and_the_rest_does_not():
    zero = initial("unet", lambda path: path.endswith(("conv_2/kernel", "project/kernel")))
    assert len(zero) == 8 + 1 and not any(np.any(leaf) for leaf in zero.values())
    other = initial(
        "unet",
        lambda path: path.startswith("middle") and path.endswith(("conv_1/kernel", "qkv/kernel")),
    )
    for leaf in other.values():  # unit-gain uniform of fan 3 * 3 * 16 and 16
        assert 0.9 < np.std(leaf) * np.sqrt(math.prod(leaf.shape[:-1])) < 1.1


@each_net
def test_labels_matter_and_the_null_label_is_no_label(name):
    module, shape = NETS[name]
    params = params_of(name)
    x, c = inputs(shape)
    out = forward(name)(params, x, c, [0, 0, 0, 3])
    other = forward(name)(params, x, c, [1, 0, 2, 3])
    changed = np.abs(out - other).max(axis=tuple(range(1, x.ndim)))
    assert changed[0] > 1e-3 and changed[2] > 1e-3 and changed[1] == changed[3] == 0
    null = forward(name)(params, x, c, [3, 3, 3, 3])
    np.testing.assert_allclose(
        jax.jit(module.apply)({"params": params}, x, c), null, rtol=1e-4, atol=1e-5
    )


@each_net
def test_the_noise_level_matters(name):
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    labels = np.zeros(4)
    assert (
        np.abs(
            forward(name)(params, x, c, labels) - forward(name)(params, x, c + 0.01, labels)
        ).max()
        > 1e-3
    )


@each_net
def test_an_example_does_not_depend_on_its_neighbours(name):
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    labels = np.array([0, 1, 2, 3])
    out = forward(name)(params, x, c, labels)
    others = forward(name)(
        params, np.r_[x[:1], -3 * x[1:]], np.r_[c[:1], c[1:] + 0.3], np.array([0, 0, 0, 0])
    )
    np.testing.assert_array_equal(out[0], others[0])
    assert np.abs(out[1:] - others[1:]).max() > 1e-2
    turned = forward(name)(params, x[::-1], c[::-1], labels[::-1])
    np.testing.assert_allclose(turned[::-1], out, rtol=1e-5, atol=1e-5)


@each_net
def test_labels_out_of_range_are_not_taken_for_others(name):
    params = params_of(name)
    x, c = inputs(NETS[name][1])
    out = forward(name)(params, x, c, [-1, 4, 3, 0])
    assert np.isnan(out[:2]).all() and np.isfinite(out[2:]).all()


@each_net
def test_dropout_is_off_by_default_and_random_by_its_key_alone(name):
    module, shape = NETS[name]
    params = params_of(name)
    x, c = inputs(shape)
    run = jax.jit(
        lambda key: module.apply({"params": params}, x, c, None, train=True, rngs={"dropout": key})
    )
    one, again, two = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-2
    assert np.abs(one - forward(name)(params, x, c, [3, 3, 3, 3])).max() > 1e-2


@functools.cache
def gradient(name, **options):
    module, shape = NETS[name]
    module = module.clone(**options)
    params = params_of(name)
    x, c = inputs(shape)
    cond = {"label": np.array([0, 1, 2, 3])}

    def loss(params):
        return jnp.mean((module.apply({"params": params}, x, c, cond) - jnp.cos(3 * x)) ** 2)

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@each_net
def test_the_gradient_reaches_every_parameter(name):
    value, grads = gradient(name)
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "remat, twice, moved", [("block", 8, 0), ("dots", 0, 0), ("offload", 0, 18)]
)
def test_remat_changes_neither_names_nor_values_nor_gradients(remat, twice, moved):
    """Nine blocks, eight of them residual: 'block' computes their first convolutions twice;
    'offload' moves those eight and the attention's q, k, v to the host and back.
    """
    value, grads = gradient("unet")
    again, regrads = gradient("unet", remat=remat)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), regrads, grads
    )
    plain, program = (str(gradient_program(remat=name)) for name in ("none", remat))
    assert (program.count("prevent_cse="), plain.count("prevent_cse=")) == (9, 0)
    convolutions = [text.count(" conv_general_dilated[") for text in (program, plain)]
    assert convolutions[0] - convolutions[1] == twice and program.count(" device_put[") == moved


@functools.cache
def gradient_program(**options):
    """The gradient of a training loss, with dropout, traced."""
    module, shape = NETS["unet"]
    apply = functools.partial(
        module.clone(**options).apply, train=True, rngs={"dropout": jax.random.key(0)}
    )
    return jax.make_jaxpr(
        jax.grad(lambda params: jnp.sum(apply({"params": params}, *inputs(shape)) ** 2))
    )(params_of("unet"))


def test_remat_of_older_configs_and_of_wrong_ones(monkeypatch):
    block = layers.AttentionBlock
    assert (
        remat.rematerialized(block, False) is block
        and remat.rematerialized(block, True) is not block
    )
    with pytest.raises(UserError, match="unknown remat 'dot'.*did you mean 'dots'"):
        remat.rematerialized(block, "dot")
    monkeypatch.setattr(remat, "HOST", "attic")
    with pytest.raises(
        UserError, match="needs attic memory, and this device has .*pinned_host.*use remat=dots"
    ):
        remat.rematerialized(block, "offload")


def test_bfloat16_is_close_and_keeps_parameters_and_output_in_float32():
    module, shape = NETS["unet"]
    half = module.clone(dtype="bfloat16")
    abstract, out = shapes(half, shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {
        jnp.dtype("float32")
    } and out.dtype == jnp.float32
    params = params_of("unet")
    x, c = inputs(shape)
    exact = forward("unet")(params, x, c, np.arange(4))
    rough = np.asarray(jax.jit(half.apply)({"params": params}, x, c, {"label": np.arange(4)}))
    error = np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))
    assert (
        1e-5 < error < 0.05
    )  # bfloat16 has 8 bits, 0.4 % a rounding; no difference at all would mean it was not used


# ---- attention and derivatives
def test_plain_and_fused_attention_agree():
    qkv = 2 * normal(0, (3, 2, 9, 3, 8))  # 3 heads of 8, 9 tokens

    @functools.partial(jax.jit, static_argnums=0)
    def both_ways(impl, qkv):
        out, pull = jax.vjp(lambda a: layers.attention(*a, impl), qkv)
        return out, pull(jnp.cos(out))

    (plain, plain_grads), (fused, fused_grads) = both_ways("plain", qkv), both_ways("fused", qkv)
    assert plain.shape == (2, 9, 3, 8)
    np.testing.assert_allclose(plain, fused, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plain_grads, fused_grads, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        both_ways("auto", qkv)[0], plain if jax.default_backend() == "cpu" else fused
    )


def test_attention_of_known_answers():
    """Equal keys: the mean of the values. A key far ahead of the others: its value, though
    exp(logit) overflows.
    """
    q, v, ahead = (
        np.ones((1, 5, 2, 4), np.float32),
        normal(0, (1, 5, 2, 4)),
        np.zeros((1, 5, 2, 4), np.float32),
    )
    ahead[:, 3] = 100.0
    attend = jax.jit(layers.attention, static_argnums=3)
    for impl in ("plain", "fused"):
        mean = attend(q, q, v, impl)
        np.testing.assert_allclose(
            mean, np.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-6
        )
        one = attend(q, ahead, v, impl)
        np.testing.assert_allclose(one, np.broadcast_to(v[:, 3:4], v.shape), atol=1e-6)


def test_plain_attention_jvp_against_finite_differences():
    with jax.enable_x64(True):
        qkv, direction = normal(0, (2, 3, 1, 6, 2, 4), np.float64)
        f = jax.jit(lambda a: layers.attention(*a, "plain"))
        derivative = jax.jit(lambda a, d: jax.jvp(f, (a,), (d,))[1])(qkv, direction)
        h = 1e-5
        difference = (np.asarray(f(qkv + h * direction)) - np.asarray(f(qkv - h * direction))) / (
            2 * h
        )
        assert difference.dtype == np.float64
    np.testing.assert_allclose(derivative, difference, rtol=1e-7, atol=1e-9)


def test_forward_mode_through_the_whole_unet():
    """jvp in (x, c_noise) against central differences, and against reverse mode: <u, J v> = <J^T u,
    v>.
    """
    module, shape = NETS["unet"]
    params = params_of("unet")
    x, c = inputs(shape)

    def f(x, c):
        return module.apply({"params": params}, x, c)

    v = (normal(3, shape), np.full(shape[:1], 1e-3, np.float32))  # 1000 c_noise turns by about 1
    u = normal(4, shape)

    @jax.jit
    def both(x, c):
        _, pull = jax.vjp(f, x, c)
        return jax.jvp(f, (x, c), v)[1], pull(u)

    jv, ju = jax.device_get(both(x, c))
    np.testing.assert_allclose(np.vdot(u, jv), sum(np.vdot(a, b) for a, b in zip(ju, v)), rtol=1e-4)
    h = 1e-2

    def at(h):
        return forward("unet")(params, x + h * v[0], c + h * v[1], [3, 3, 3, 3])

    difference = (at(h) - at(-h)) / (2 * h)
    assert np.linalg.norm(jv - difference) < 2e-3 * np.linalg.norm(jv)


# ---- the small pieces
def test_depth_to_space_undoes_space_to_depth_and_keeps_blocks_together():
    x = np.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    packed = layers.space_to_depth(x, 2)
    np.testing.assert_array_equal(layers.depth_to_space(packed, 2), x)
    np.testing.assert_array_equal(packed[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])


def test_pooling_undoes_nearest():
    x = normal(0, (2, 3, 5, 4))
    big = np.asarray(layers.nearest(x))
    np.testing.assert_allclose(layers.average_pool(big), x, rtol=1e-6)
    np.testing.assert_array_equal(big[0, 4:6, 2:4, 1], np.full((2, 2), x[0, 2, 1, 1]))


@pytest.mark.parametrize("channels", [1, 3, 8, 32, 48, 96, 128, 144, 256, 384, 512])
def test_groups_divide(channels):
    g = layers.groups(channels)
    assert channels % g == 0 and 1 <= g <= 32
    assert g == 32 if channels % 128 == 0 else channels // g >= min(4, channels)


def test_sinusoids_are_ddpm_s():
    """Sines first, frequencies from 1 to exactly 1/10000 (DDPM divides by n - 1)."""
    features = embeddings.sinusoidal(jnp.array([0.0, 500.0]), 8)
    np.testing.assert_array_equal(features[0], [0, 0, 0, 0, 1, 1, 1, 1])
    frequency = np.array([1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    np.testing.assert_allclose(
        features[1], [*np.sin(500 * frequency), *np.cos(500 * frequency)], atol=1e-4
    )


def test_fourier_features_are_fixed_and_on_the_circle():
    features = np.asarray(embeddings.fourier(jnp.array([-1.0, 0.3]), 16))
    np.testing.assert_allclose(features[:, :8] ** 2 + features[:, 8:] ** 2, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(features, embeddings.fourier(jnp.array([-1.0, 0.3]), 16))


def test_the_noise_features_are_those_asked_for():
    """With random parameters the two kinds differ; a scalar noise level is everybody's."""
    condition = embeddings.ConditionEmbedding(features=8, width=8)
    params = jax.jit(lambda: condition.init(jax.random.key(0), 0.0, {}, 1))()

    def at(kind, c):
        return np.asarray(condition.clone(noise_features=kind).apply(params, c, {}, 2))

    c = jnp.array([0.3, 0.3])
    assert np.abs(at("fourier", c) - at("sinusoidal", c)).max() > 1e-2
    np.testing.assert_array_equal(at("fourier", jnp.array(0.3)), at("fourier", c))


def test_check_labels():
    embeddings.check_labels(np.array([0, 9, 10]), 10)
    for bad in (-1, 11):
        with pytest.raises(UserError, match=f"label {bad} is out of range.*0 to 9"):
            embeddings.check_labels([0, bad], 10)


def test_skip_scale_scales_the_sum():
    """With zero-initialised second convolutions a block is skip_scale times its shortcut."""
    x, told = normal(0, (1, 4, 4, 8)), np.ones((1, 16), np.float32)
    block = layers.ResidualBlock(8, skip_scale=0.5)
    out, _ = jax.jit(lambda x, told: block.init_with_output(jax.random.key(1), x, told, False))(
        x, told
    )
    np.testing.assert_allclose(out, 0.5 * x, rtol=1e-6)
