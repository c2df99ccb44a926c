"""Animations of sampling end with the samples, for one step, adaptive steps and latents."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import toy
from diffusion_jax.assembly import experiment, sampling
from diffusion_jax.assembly.latent import LatentDecoder
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.report import movies
from diffusion_jax.studies import animation


@pytest.fixture
def drawn(monkeypatch):
    """What the frames are drawn from, instead of the frames: x_t and x0-hat of each call."""
    calls = []

    def frames(x_t, x0, captions, *rest):
        calls.append((x_t, x0, captions))
        return [Image.new("L", (4, 4), i) for i in range(len(captions))]

    monkeypatch.setattr(movies, "image_frames", frames)
    monkeypatch.setattr(movies, "point_frames", frames)
    return calls


def animate(job, path, chosen, model=None):
    model, look = model or job.trained.experiment, animation.Look(3, 10.0, 2)
    animation.animate(model, job.trained.params, chosen, job.keys, job.cond, path, look)


def test_the_last_frame_has_the_samples_of_the_command(job, drawn, tmp_path):
    model = job.trained.experiment
    chosen = sampling.method(model)
    animate(job, tmp_path / "a.gif", chosen)
    (x_t, x0, captions) = drawn.pop()
    assert x_t.shape == x0.shape == (3, 4, 8, 8, 1) and x_t.dtype == np.uint8
    assert captions == ["step 0 of 4", "step 3 of 4", "step 4 of 4"]
    samples = sampling.sample_with(model, job.trained.params, chosen)(job.keys, job.cond)
    np.testing.assert_allclose(transforms.to_uint8(samples), x_t[-1].astype(int), atol=1)
    np.testing.assert_array_equal(x_t[-1], x0[-1])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3


def test_one_step_and_latents_are_animated(job, drawn, tmp_path):
    """The decoder doubles the size; it is given noise of unit scale, whatever the process."""

    def decode(params, z):
        return params * z.repeat(2, 1).repeat(2, 2)

    model = job.trained.experiment._replace(latents=LatentDecoder(decode, jnp.float32(0.25)))
    chosen = sampling.method(model, model.sampling._replace(nfe=1))
    animate(job, tmp_path / "a.gif", chosen, model)
    x_t, x0, captions = drawn.pop()
    assert x_t.shape == (2, 4, 16, 16, 1) and captions == ["step 0 of 1", "step 1 of 1"]
    noise = (x_t[0, :, ::2, ::2] / 127.5 - 1) / 0.25
    assert 0.8 < noise.std() < 1.2 and (x_t[-1] == x0[0]).all()


def test_an_adaptive_sampler_is_stopped_at_each_frame(drawn, tmp_path, capsys):
    config = toy.get_config("ve")
    config.model.update(width=8, blocks=1)
    config.conditional, config.sampler.guidance = False, 1.0
    config.sampler.name = "adaptive.dpm_adaptive(rtol=0.5, atol=0.5)"
    model = experiment.assemble(config.lock(), (2,), 0)
    params = model.kind.init(model, jax.random.key(0))
    real = np.random.default_rng(0).normal(size=(50, 2))
    keys, path = generate.seeds_to_keys(range(3)), tmp_path / "a.gif"
    look = animation.Look(4, 10.0, 1, real)
    animation.animate(model, params, sampling.method(model), keys, None, path, look)
    x_t, _, captions = drawn.pop()
    assert x_t.shape == (4, 3, 2) and len(captions) == 4
    assert "stops the adaptive sampler" in capsys.readouterr().err
    assert np.abs(x_t[0]).max() > 10  # in its own scale; the frames are zoomed


def test_what_is_no_denoiser_has_no_animation(job, tmp_path):
    kind = job.trained.experiment.kind._replace(denoises=False)
    model = job.trained.experiment._replace(kind=kind)
    with pytest.raises(UserError, match="has no denoiser"):
        animate(job, tmp_path / "a.gif", None, model)


@pytest.mark.parametrize(
    "count, classes, prompts, columns",
    [(64, 10, 0, 10), (12, 0, 3, 4), (9, 0, 0, 3), (10, 10, 0, 4)],
)
def test_a_column_is_a_class_or_a_seed_where_that_fits(count, classes, prompts, columns):
    assert animation.columns_for(count, classes, prompts) == columns
