"""A labeled mixture, of which every conditional denoiser is exact."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base, network
from diffusion_jax.assembly import experiment
from diffusion_jax.targets import laws
from tests.families import PROCESSES

KINDS = (
    "VP",
    "EDM",
    "RectifiedFlow",
    "DDPM_cosine",
)  # guidance sees no more of a process than alpha and sigma


every_process = pytest.mark.parametrize("process", [PROCESSES[name] for name in KINDS], ids=KINDS)


WEIGHTS, CENTERS, STD = np.array([0.7, 0.3]), np.array([[0.8, -0.3], [-0.5, 0.6]]), 0.3


NULL = -1


def null(cond):
    return {"label": jnp.full_like(cond["label"], NULL)}


def points():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2)), "float32")
    return x, {"label": jnp.array([0, 1, 0, 1, 1, 0])}


def exact_logits(process):
    """log p(class, x_t) of every class, the classifier that Bayes' rule asks for up to softmax."""
    law = laws.mixture(WEIGHTS, CENTERS, STD)

    def logits(x_t, t):
        every = [{"label": jnp.full(len(x_t), label)} for label in (0, 1)]
        return jnp.stack(
            [laws.log_density_mixture(law, process, x_t, t, [0, 1], cond) for cond in every], 1
        )

    return logits


def tiny(guide="cfg()", load=None, model="mlp.MLP", shape=(2,), **changes):
    """A tiny experiment of three classes."""
    config = base()
    config.update(changes)
    options = {
        "mlp.MLP": dict(width=8, blocks=1),
        "unet.UNet": dict(multipliers=(1,), attention=(), blocks=1, width=8),
        "dit.DiT": dict(patch=1, width=8, depth=1, heads=2),
    }
    config.model = network(model, **options[model])
    config.sampler.update(guide=guide, nfe=3, clip="none")
    return experiment.assemble(config, shape, 3, load)


NET = dict(num_classes=3, width=8, multipliers=(1, 2), blocks=1, attention=(2,), head_width=8)
