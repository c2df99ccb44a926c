"""Sampling on an accelerator: one seed is one image, and the host is not asked while it runs."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from diffusion_jax.assembly import denoiser, sampling
from diffusion_jax.evaluation import generate
from tests.accelerator import models
from tests.accelerator.mode import device, pick

NFE = pick(10, 3)


@pytest.fixture(scope="module")
def model():
    """A model with random weights, and a sampler that draws noise in every step."""
    chosen = models.experiment(sampler__name="ancestral.ddim(eta=1.0)", sampler__nfe=NFE)
    with models.on(device()):
        init = jax.jit(lambda: chosen.kind.init(chosen, jax.random.key(0)))
        return chosen, jax.device_put(models.awake(init()), device())


def test_one_seed_is_one_image_at_three_batch_sizes(model):
    """To the rounding of float32: programs of other batch sizes add in another order."""
    chosen, params = model
    count = pick(16, 5)
    cond = {"label": np.arange(count, dtype=np.int32) % models.CLASSES}
    images = []
    with models.on(device()):
        draw = sampling.sample_with(chosen, params, sampling.method(chosen))
        for batch_size in pick((16, 7, 2), (5, 3, 2)):
            keys = generate.seeds_to_keys(range(count))
            images.append(
                generate.generate(
                    draw, keys, cond, batch_size=batch_size, progress=False, finish=np.asarray
                )
            )
    first, *others = images
    assert np.std(first, axis=0).mean() > 0.05  # different seeds are different images
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-3)


def test_a_sampler_and_a_training_step_run_without_transfers(model):
    """With everything on the device, nothing goes to or comes from the host until the end."""
    chosen, params = model
    method = sampling.method(chosen)
    with models.on(device()):
        run = sampling.sample_fn(chosen, method.sampler, guided=method.guided, clip=method.clip)
        keys = generate.seeds_to_keys(range(4))
        cond = {"label": jax.device_put(np.zeros(4, np.int32), device())}
        rest = jax.device_put((np.asarray(method.ts), np.float32(1)), device())
        arguments = (denoiser.ensemble(chosen, params), keys, cond, *rest)
        program = run.lower(*arguments).compile()
        assert not asks_the_host(program.as_text())
        jax.block_until_ready(run(*arguments))
        with jax.transfer_guard("disallow"):
            jax.block_until_ready(run(*arguments))

        parts, state = models.start(chosen, device())
        fed = parts.runner.put_batch(models.batch(0), axis=1)
        assert not asks_the_host(parts.step.trace(state, fed).lower().compile().as_text())
        state, _ = parts.step(state, fed)
        with jax.transfer_guard("disallow"):
            jax.block_until_ready(parts.step(state, fed))
        with jax.transfer_guard("disallow"), pytest.raises(Exception, match="[Dd]isallowed"):
            run(*arguments[:-1], np.float32(2))  # the control: a number from the host is refused


def asks_the_host(program: str) -> list[str]:
    """The calls of a compiled program that reach the host."""
    called = re.findall(r'custom_call_target="([^"]*)"', program)
    moved = re.findall(r"= \S+ (infeed|outfeed|send|recv)\(", program)
    return [name for name in called if "callback" in name.lower()] + moved
