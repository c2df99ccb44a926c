"""Small models, their weights and batches, and runs of them on a given device."""

from __future__ import annotations

import contextlib

import jax
import numpy as np

from configs import base, digits
from diffusion_jax.assembly import trainer
from diffusion_jax.assembly.components import network
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core import arrays
from tests.accelerator.mode import pick

SHAPE, CLASSES = pick((16, 16, 3), (8, 8, 1)), 10
BATCH = pick(32, 4)
WIDTH = pick(64, 8)

NETWORKS = {
    "unet.UNet": dict(
        width=WIDTH,
        multipliers=pick((1, 2), (1,)),
        blocks=1,
        attention=pick((16,), ()),
        head_width=WIDTH,
    ),
    "dit.DiT": dict(patch=2, width=2 * WIDTH, depth=pick(2, 1), heads=2),
}

PLAIN = dict(name="sgd", learning_rate=0.05, weight_decay=None, b1=None, b2=None)
ADAM = dict(name="adam", learning_rate=1e-3, weight_decay=None, b1=0.9, b2=0.99)


def config(name="unet.UNet", variant="vp", few_step="", **changes):
    """A config of a small network, trained by plain gradient descent, which hides nothing."""
    chosen = digits.get_config("edm" if few_step else variant)
    chosen.model = network(name, **NETWORKS[name])
    if few_step:
        chosen = base.few_step(chosen, few_step, "")
    chosen.data.batch_size = BATCH
    chosen.optimizer.update(warmup=0, schedule="constant", **PLAIN)
    chosen.training.steps = 1000
    chosen.optimizer.update(changes.pop("optimizer", {}))
    chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return chosen


def experiment(*args, **changes):
    return assemble(config(*args, **changes), SHAPE, CLASSES)


def batch(step):
    """The stacked batch of one call of one step, on the host: smooth random pictures."""
    rng = np.random.default_rng(step)
    height, width, channels = SHAPE
    waves = rng.standard_normal((1, BATCH, 4, channels)).astype(np.float32)
    rows, columns = np.mgrid[:height, :width] * (2 * np.pi / height)
    basis = np.stack([np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns)])
    image = np.tanh(np.einsum("kbwc,whv->kbhvc", waves, basis)).astype(np.float32)
    return {"image": image, "label": rng.integers(CLASSES, size=(1, BATCH), dtype=np.int32)}


def awake(params):
    """Parameters without the zeros of initialization, so that every path carries a signal."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.02 * rng.standard_normal(x.shape).astype(np.float32), params
    )


@contextlib.contextmanager
def on(device):
    """What is traced and created here is for this device; products are not rounded to TF32."""
    with (
        jax.default_device(device),
        arrays.compiling_for(device.platform),
        jax.default_matmul_precision("highest"),
    ):
        yield


def start(model, device):
    """The compiled training on a device, and a state with the same weights on every device."""
    parts = trainer.training(model, devices=[device])
    state = jax.jit(parts.init)(jax.random.key(0))
    return parts, parts.runner.put_state(state._replace(params=awake(state.params)))


def losses(model, device, steps):
    """The loss of each step, and the parameters after the last one."""
    with on(device):
        parts, state = start(model, device)
        found = []
        for number in range(steps):
            state, numbers = parts.step(state, parts.runner.put_batch(batch(number), axis=1))
            found.append(float(numbers["loss"][0]))
        return np.asarray(found), jax.device_get(state.params)


def distance(found, expected):
    """The largest difference of two trees, as a share of the largest value of its leaf."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
