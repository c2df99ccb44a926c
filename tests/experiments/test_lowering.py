"""The train step and the sampler of every preset, lowered for CUDA and TPU without such a device.

A program is the same up to sizes for many presets. The ordinary tests lower presets that together
have every component and every network; the long tests lower all presets. Widths are those of one
attention head, because they decide which attention a GPU runs.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from diffusion_jax.assembly import denoiser, sampling, trainer
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core import arrays
from tests.experiments.small_runs import small
from tests.experiments.test_every_config import (
    SHAPES,
    SIZES,
    config_of,
    parameters,
    variants_of,
)

PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}  # as JAX names the devices, and the target
# Custom calls that are computed by the device. Whatever else a program calls is found.
ON_DEVICE = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}


@pytest.fixture(autouse=True)
def cudnn(monkeypatch):
    """A version of cuDNN, for which JAX asks when it traces, and which is not installed here."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


# ---- presets
def presets():
    """(file, variant with its size) of every preset."""
    for file in SHAPES:
        for size in SIZES.get(file, ("", ",full")):
            yield from ((file, variant + size) for variant in variants_of(file))


def shrunk(config):
    """The config with one block of one attention head, as wide as the heads of its network."""
    model = config.model
    if model.name == "dit.DiT":
        width = model.width // model.heads
    elif model.name == "unet.UNet":
        width = model.head_width
    elif model.name == "autoencoder.AutoencoderKL":  # one head, at its last level
        width = model.width * model.multipliers[-1]
    else:
        return small(config)
    config = small(config)
    config.model.width = width
    if "head_width" in config.model:
        config.model.head_width = width
    return config


def components(preset):
    """What distinguishes the program of a preset from those of others, up to sizes."""
    config = config_of(*preset)
    model, sampler = config.model, config.sampler
    parts = {
        "network": (model.name, model.get("dtype"), model.get("attention_impl")),
        "attention": has_flash(shrunk(config_of(*preset)), SHAPES[preset[0]]),
        "process": config.process.partition("(")[0],
        "parameterization": config.parameterization.partition("(")[0],
        # without numbers: a few-step model's schedule, the start of an adversary
        "objective": re.sub(r"guidance=|[\d.]", "", config.objective),
        "sampler": sampler.name,
        "guided": (model.name, sampler.guidance == 1),
        "clip": sampler.clip,
        "condition": (config.conditional, config.text.encoder),
    }
    return set(parts.items())


@functools.cache
def representatives():
    """Presets that together have all components: first those with most that are not there yet."""
    left = {preset: components(preset) for preset in presets()}
    missing, found = set().union(*left.values()), []
    while missing:
        found.append(max(left, key=lambda preset: len(left[preset] & missing)))
        missing -= left[found[-1]]
    return found


# ---- programs
def step_of(experiment, shape):
    """(the train step, traced; the shapes of its state)."""
    leading = (experiment.training.steps_per_call, experiment.data.batch_size)
    inputs = jax.eval_shape(lambda: experiment.conditions.null(1)) or {}
    inputs |= {"image": jax.ShapeDtypeStruct((1, *shape), jnp.float32)}
    batch = {
        name: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype) for name, x in inputs.items()
    }
    parts = trainer.training(experiment, jax.devices()[:1])
    state = parts.runner.template(parts.init, jax.random.key(0))
    return parts.step.trace(state, batch), state


def sampler_of(experiment, params):
    """The program that draws two images, traced."""
    chosen = sampling.method(experiment)
    draw = sampling.sample_fn(
        experiment, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise
    )
    weights = jax.eval_shape(lambda p: denoiser.ensemble(experiment, p), params)
    keys, cond = jax.eval_shape(
        lambda: (jax.random.split(jax.random.key(0), 2), experiment.conditions.null(2))
    )
    return draw.trace(weights, keys, cond, np.asarray(chosen.ts), np.float32(chosen.guidance))


def prepared(config, shape):
    experiment = assemble(config, shape, 10)
    experiment = experiment.kind.prepare(experiment, None)
    if config.distill.teacher:  # the model is its own teacher
        params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parameters(experiment))
        experiment = experiment._replace(teacher=(experiment, params))
    return experiment


def faults(text):
    """What a program of an accelerator must not have."""
    found = re.findall(r"stablehlo\.(?:outfeed|infeed|send|recv)\b", text)
    found += set(re.findall(r"custom_call @([\w$.]+)", text)) - ON_DEVICE
    return found + re.findall(r"tensor<[\dx?]*f64>", text)[:1]


def flash(text):
    """Whether the program has cuDNN's attention, and its derivative."""
    return "@__cudnn$fmhaSoftmax(" in text, "@__cudnn$fmhaSoftmaxBackward(" in text


def has_flash(config, shape):
    """Whether the attention of a shrunk network is one that cuDNN has a kernel for."""
    model = config.model
    if shape[0] // (model.get("stem") or model.get("patch") or 1) % 2:
        return False  # an odd number of tokens
    attends = model.name in ("unet.UNet", "dit.DiT", "autoencoder.AutoencoderKL")
    half = model.get("dtype") in ("bfloat16", "float16")
    fits = half and model.width % 8 == 0 and model.width <= 128
    return attends and fits and model.get("attention_impl", "auto") == "auto"


DRAWN = set()  # by an earlier preset


def check(config, shape):
    """Lower the train step of a config for both platforms, and its sampler if it is a new one."""
    experiment, expected = prepared(config, shape), has_flash(config, shape)
    sampler = (config.model.name, expected, config.sampler.name, config.sampler.guidance == 1)
    for platform in ("gpu", "tpu")[: 1 + expected]:
        # without cuDNN the program is one for both
        targets = (PLATFORMS[platform],) if expected else tuple(PLATFORMS.values())
        cudnn = expected and platform == "gpu"
        with arrays.compiling_for(platform):
            step, state = step_of(experiment, shape)
            text = step.lower(lowering_platforms=targets).as_text()
            assert not faults(text), targets
            assert flash(text) == (cudnn, cudnn), targets
            if sampler not in DRAWN:
                drawn = sampler_of(experiment, state.params)
                text = drawn.lower(lowering_platforms=targets).as_text()
                assert not faults(text), targets
                assert flash(text) == (cudnn, False), targets
        after = step.jaxpr.out_avals[: len(jax.tree.leaves(state))]
        assert not any(x.weak_type for x in after)  # or the second step would be traced again
    DRAWN.add(sampler)


# ---- tests
@pytest.mark.parametrize("preset", representatives(), ids=lambda preset: ":".join(preset))
def test_presets_of_every_component_lower_for_cuda_and_tpu(preset):
    check(shrunk(config_of(*preset)), SHAPES[preset[0]])


@pytest.mark.long
@pytest.mark.parametrize("file", SHAPES)
def test_every_preset_lowers_for_cuda_and_tpu(file):
    for preset in presets():
        if preset[0] == file and preset not in representatives():
            check(shrunk(config_of(*preset)), SHAPES[file])


def test_the_faults_are_found():
    """The control: float64, and what a host computes or receives, in programs of this platform; JAX
    lowers no callback for others.
    """
    x = jnp.ones(2)

    def shown(x):
        jax.debug.callback(print, x)
        return x

    def computed(x):
        return jax.pure_callback(np.sin, x, x)

    def faults_of(function, x):
        return faults(jax.jit(function).lower(x).as_text())

    assert not faults_of(jnp.sin, x)
    assert any("callback" in fault for fault in faults_of(shown, x))
    assert any("callback" in fault for fault in faults_of(computed, x))
    with jax.enable_x64(True):
        assert faults_of(jnp.sin, jnp.ones(2)) == ["tensor<2xf64>"]


def test_attention_in_float32_or_of_wide_heads_is_not_cudnns():
    """The control: the same network, but for its type or the width of its head."""
    preset = ("imagenet256_latent", "flow,S")
    for key, value in (("dtype", "float32"), ("width", 192), ("attention_impl", "blocked")):
        config = shrunk(config_of(*preset))
        config.model[key] = value
        assert not has_flash(config, SHAPES[preset[0]])
        with arrays.compiling_for("gpu"):
            experiment = prepared(config, SHAPES[preset[0]])
            drawn = sampler_of(experiment, parameters(experiment))
            assert flash(drawn.lower(lowering_platforms=("cuda",)).as_text()) == (False, False)
