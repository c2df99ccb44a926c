"""Movies of points: frames at one pace, the exact density, and a still picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import schedules
from diffusion_jax.studies import toy_movie
from diffusion_jax.targets import presets


def test_a_movie_has_a_panel_for_each_process_and_sampler(tmp_path, capsys):
    toy_movie.toy_movie(
        target="standard_normal",
        processes="VP;VE",
        samplers="ddim;heun@uniform",
        nfe=5,
        num=4,
        side=32,
        out=str(tmp_path / "toy"),
    )
    assert "6 frames of 4 panels" in capsys.readouterr().out  # five times, and the samples
    with Image.open(tmp_path / "toy.gif") as gif, Image.open(tmp_path / "toy.png") as still:
        assert gif.n_frames == 6 and gif.size == still.size and min(gif.size) > 64


def test_the_density_is_that_of_the_noised_target():
    """One Gaussian under VE at sigma = 0.1: its mean, and its variance with that of the noise."""
    law = presets.gmm(modes=1, std=0.5, seed=3)
    process = schedules.VE(sigma_min=0.01, sigma_max=1.0)
    box, (mean,) = ([-3.0, -3.0], [3.0, 3.0]), np.asarray(law.modes.means)
    t, zoom = 0.5, 2.0  # sigma = 0.1
    found = toy_movie._density(law, process, box)(t, zoom)
    place = np.unravel_index(found.argmax(), found.shape)
    width = 6.0 / toy_movie.CELLS
    peak = zoom * (-3 + width * (np.array(place) + 0.5))
    np.testing.assert_allclose(peak, mean, atol=width * zoom)
    share = found.sum(1) / found.sum()
    x = zoom * (-3 + width * (np.arange(toy_movie.CELLS) + 0.5))
    variance = float(law.modes.variances[0, 0]) + 0.1**2
    np.testing.assert_allclose(np.sum(share * (x - mean[0]) ** 2), variance, rtol=0.02)


def test_what_cannot_be_shown_is_refused_before_anything_is_drawn(tmp_path):
    for flags, said in (
        ({"target": "gmm(dim=3)"}, r"--target=gmm\(dim=3\).*points in the plane"),
        ({"processes": " ; "}, "--processes= names nothing"),
        ({"samplers": "ddimm", "target": "standard_normal"}, "did you mean"),
    ):
        with pytest.raises(UserError, match=said):
            toy_movie.toy_movie(out=str(tmp_path / "toy"), num=2, nfe=2, **flags)
    assert not list(tmp_path.iterdir())
