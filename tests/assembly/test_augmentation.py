"""Non-leaky augmentation in training: the network is given the labels of what it is shown."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, digits_few_step, fashion_latent
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Noised
from diffusion_jax.data import augmentation
from diffusion_jax.objectives.base import FewStepExample
from diffusion_jax.training.step import Now
from tests.experiments.small_runs import small

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 4)


def experiment(config, **model):
    config = small(config)
    config.data.augment = 0.5
    config.model.update(model)
    return assemble(config, (8, 8, 1), 10)


def seen(own, train):
    """What the objective of a kind of model is shown: the mean of x0, and the sum of the labels."""

    def mean(x0, cond):
        return x0.mean((1, 2, 3)) + (cond["augment"].sum(1) if "augment" in cond else 0.0)

    if hasattr(own.objective, "needs_teacher"):
        objective = own.objective._replace(
            draw=lambda keys, x0, progress: FewStepExample(x0, jnp.ones(4), x0, x0, jnp.ones(4)),
            loss=lambda networks, drawn, cond, progress: mean(drawn.x0, cond),
        )
    else:
        objective = own.objective._replace(
            draw=lambda keys, x0: Noised(x0, jnp.ones(4), x0, x0),
            loss=lambda denoise, noised, cond: mean(noised.x0, cond),
        )
    own = own._replace(objective=objective)
    batch = {"image": IMAGES, "label": jnp.zeros(4, jnp.int32)}
    return own.kind.loss(own)({}, batch, KEYS, Now(jnp.zeros((), jnp.int32), {}, train))[0]


@pytest.mark.parametrize("config", [digits.get_config("edm"), digits_few_step.get_config("ect")])
def test_training_sees_distorted_images_with_their_labels_and_evaluation_neither(config):
    own = experiment(config, augment=9)
    keys = arrays.fold_in(KEYS, streams.EXAMPLE_AUGMENTATION)
    images, labels = augmentation.augment(keys, IMAGES, 0.5)
    wanted = images.mean((1, 2, 3)) + labels.sum(1)
    np.testing.assert_allclose(seen(own, True), wanted, rtol=1e-5)
    np.testing.assert_allclose(seen(own, False), IMAGES.mean((1, 2, 3)), rtol=1e-6)


def test_a_network_without_labels_and_latents_are_refused():
    with pytest.raises(UserError, match="config.model.augment=9, which unet.UNet"):
        experiment(digits.get_config("vp"))
    config = fashion_latent.get_config("flow")
    config.data.augment = 0.1
    with pytest.raises(UserError, match="config.data.augment=0.1 distorts the images"):
        assemble(config, (7, 7, 4), 10)
