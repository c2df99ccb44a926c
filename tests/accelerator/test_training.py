"""Training on an accelerator: equal to the CPU's, exact enough in 16 bits, and without leaks."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffusion_jax.models.remat import REMAT
from tests.accelerator import models
from tests.accelerator.mode import TINY, device, host, pick


def test_ten_steps_are_those_of_the_cpu():
    """A U-Net with attention in float32, by plain gradient descent from the same weights."""
    model = models.experiment()
    found, params = models.losses(model, device(), 10)
    expected, reference = models.losses(model, host(), 10)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert models.distance(params, reference) < 2e-3


@pytest.mark.parametrize("few_step", ["sct", "meanflow"])
def test_losses_with_forward_mode_derivatives_are_those_of_the_cpu(few_step):
    """sCM and MeanFlow take a jvp of the network inside the loss; its gradient is trained on."""
    model = models.experiment(few_step=few_step)
    found, params = models.losses(model, device(), 2)
    expected, reference = models.losses(model, host(), 2)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.isfinite(found).all() and models.distance(params, reference) < 1e-2


def test_16_bits_learn_as_float32_does():
    """The loss curves have the same weights, batches and noise; their smoothed ends agree.

    The loss of float16 is scaled.
    """
    steps = pick(200, 24)
    curves = {}
    for dtype, scale in (("float32", ""), ("bfloat16", ""), ("float16", "dynamic(start=10.0)")):
        model = models.experiment(
            model__dtype=dtype, training__loss_scale=scale, optimizer=models.ADAM
        )
        curves[dtype], _ = models.losses(model, device(), steps)
    start, end = (
        np.mean(part) for part in np.split(curves["float32"], [steps // 4, -steps // 4])[::2]
    )
    assert end < 0.9 * start
    for dtype in ("bfloat16", "float16"):
        assert abs(np.mean(curves[dtype][-steps // 4 :]) - end) < 0.03 * end


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_way_to_rematerialize_gives_the_same_step(name):
    """And 'block' needs less memory than 'none' on an accelerator, where XLA keeps it apart."""
    params, memory = {}, {}
    for remat in REMAT:
        model = models.experiment(name, model__remat=remat)
        with models.on(device()):
            parts, state = models.start(model, device())
            given = parts.runner.put_batch(models.batch(0), axis=1)
            program = parts.step.trace(state, given).lower().compile()
            memory[remat] = program.memory_analysis().temp_size_in_bytes
            params[remat] = jax.device_get(program(state, given)[0].params)
    for remat in REMAT[1:]:
        assert models.distance(params[remat], params["none"]) < 1e-4, remat
    assert TINY or memory["block"] < memory["none"]


def test_the_state_is_donated_and_memory_does_not_grow():
    """What is alive after 200 steps is what was alive after 20: arrays to the byte, and the memory
    of the device to the rounding of its allocator.
    """
    model = models.experiment()
    steps, early = pick(200, 12), pick(20, 4)
    alive = {}
    with models.on(device()):
        parts, state = models.start(model, device())
        fed = [parts.runner.put_batch(models.batch(number), axis=1) for number in range(2)]
        for number in range(1, steps + 1):
            before = jax.tree.leaves(state)
            state, numbers = parts.step(state, fed[number % 2])
            assert all(leaf.is_deleted() for leaf in before)
            del before
            if number in (early, steps):
                jax.block_until_ready((state, numbers))
                alive[number] = in_use()
    (arrays, device_bytes), (arrays_before, device_bytes_before) = alive[steps], alive[early]
    assert arrays == arrays_before
    assert device_bytes <= device_bytes_before + 2**20


def in_use():
    """Bytes: of all arrays of this process, and what the device says itself where it does."""
    stats = device().memory_stats() or {}
    held = sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())
    return held, stats.get("bytes_in_use", 0)
