"""Aspect-ratio buckets are checked before training; a model draws images of other sizes."""

from __future__ import annotations

import numpy as np
import pytest

from configs import digits
from configs.base import network
from diffusion_jax.assembly import preflight
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.aspect import Bucketed
from diffusion_jax.data.sources import Arrays
from diffusion_jax.studies import generation


def images(height, width):
    return Arrays(np.zeros((3, height, width, 1), np.uint8))


@pytest.fixture(scope="module")
def model():
    config = digits.get_config("edm")
    options = dict(width=8, multipliers=(1, 2), blocks=1, attention=())
    config.model = network("unet.UNet", **options)
    return assemble(config, (8, 8, 1), 0)


def test_each_shape_must_fit_the_network_and_each_step_has_one(model):
    fine = Bucketed(images(8, 8), [images(6, 12), images(12, 6)])
    preflight._check_buckets(model, fine)
    with pytest.raises(UserError, match="config.data.buckets: 7 x 12: .*need multiples of 2"):
        preflight._check_buckets(model, Bucketed(images(8, 8), [images(6, 12), images(7, 12)]))
    several = model._replace(training=model.training._replace(steps_per_call=2))
    with pytest.raises(UserError, match="set --config.training.steps_per_call=1"):
        preflight._check_buckets(several, fine)


def test_samples_have_the_size_that_is_asked_for(model):
    trained = Trained(model, {}, 1, "params", {})
    assert generation._sized(trained, "") is trained
    assert generation._sized(trained, "6x12").experiment.shape == (6, 12, 1)
    for bad in ("6", "6x", "0x8", "axb", "-6x8", "6x12x1"):
        with pytest.raises(UserError, match="write height and width of images, such as 64x96"):
            generation._sized(trained, bad)
