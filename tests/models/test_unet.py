"""The U-Net: shapes, what each option promises, and memory."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.components import MODELS
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import layers, remat
from diffusion_jax.models.unet import UNet
from tests.models.networks import NETS, TINY, forward, gradient, inputs, normal, params_of, shapes


def count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


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


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("updown", ["conv", "resblock"])
def test_series_and_volumes_have_the_layers_of_images(axes, updown):
    """The same names, and kernels with as many axes as the data."""
    options = dict(num_classes=3, updown=updown, stem=2, **TINY)
    found, out = shapes(UNet(**options), (2, *(8, 16, 8)[:axes], 3))
    image, _ = shapes(UNet(**options), (2, 8, 16, 3))
    assert out.shape == (2, *(8, 16, 8)[:axes], 3)
    assert jax.tree.structure(found) == jax.tree.structure(image)
    packed = 3 * 2**axes  # channels of a packed block, which the outer convolutions see
    assert found["first"]["kernel"].shape == (3,) * axes + (packed, 8)
    assert found["last"]["kernel"].shape == (3,) * axes + (8, packed)
    inner = [{k: v for k, v in p.items() if k not in ("first", "last")} for p in (found, image)]
    for own, leaf in zip(*map(jax.tree.leaves, inner)):
        extents = leaf.shape[:1] * axes + leaf.shape[2:] if leaf.ndim == 4 else leaf.shape
        assert own.shape == extents


def test_a_series_is_an_image_of_one_column():
    """The network of one axis, with the middle columns of the kernels of the network of two."""
    module, x = UNet(**TINY | {"multipliers": (1,)}), normal(0, (2, 8, 2))
    c = np.array([0.2, 0.7], np.float32)
    abstract, _ = shapes(module, (2, 8, 1, 2))
    random = np.random.default_rng(0)
    wide = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype("f"), abstract)
    narrow = jax.tree.map(lambda k: k[:, k.shape[1] // 2] if k.ndim == 4 else k, wide)
    apply = jax.jit(lambda params, x: module.apply({"params": params}, x, c))
    expected = apply(wide, x[:, :, None])[:, :, 0]
    np.testing.assert_allclose(apply(narrow, x), expected, rtol=1e-4, atol=1e-4)


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
    waves, out = shapes(UNet(input_fourier=(7, 8), **TINY), (2, 8, 8, 3))
    assert out.shape == (2, 8, 8, 3)
    assert count(waves) - count(plain) == 3 * 3 * (3 * 4) * TINY["width"]


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


def test_the_networks_of_edm_have_the_parameters_of_its_program():
    """NVlabs/edm at 008a4e5, EDMPrecond without labels: SongUNet as train.py makes it for CIFAR-10
    (55.7M in table 7 of Karras et al. 2022), and DhariwalUNet with its defaults on 32x32.
    """
    config = cifar10.get_config("edm,ddpmpp").model.to_dict()
    module = build(MODELS, config.pop("name"), num_classes=0, **config)
    assert count(shapes(module, (1, 32, 32, 3))[0]) == 55_732_739
    adm = UNet(
        width=192,
        multipliers=(1, 2, 3, 4),
        blocks=3,
        attention=(32, 16, 8),
        updown="resblock",
    )
    assert count(shapes(adm, (1, 32, 32, 3))[0]) == 279_624_195


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
        (dict(dtype="half"), (1, 8, 8, 1), None, ["'half'", "bfloat16, float16"]),
        (dict(attention_impl="flash"), (1, 8, 8, 1), None, ["'flash'", "fused, plain"]),
        (dict(noise_embedding="sinus"), (1, 8, 8, 1), None, ["'sinus'", "'sinusoidal'"]),
        (dict(head_width=6), (1, 8, 8, 1), None, ["head_width=6", "16 channels"]),
        (dict(extra_channels=1), (1, 8, 8, 1), None, ["extra_channels=1", "has 0"]),
        (dict(), (1, 8, 8, 1), {"concat": np.zeros((1, 8, 8, 2))}, ["extra_channels=0", "has 2"]),
        (dict(), (4, 2), None, ["(4, 2)", "MLP"]),
        (dict(), (1, 8, 7, 8, 1), None, ["volumes of 8 x 7 x 8", "multiples of 2"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, shape, cond, words):
    with pytest.raises(UserError) as error:
        shapes(UNet(**{**TINY, **options}), shape, cond)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


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
