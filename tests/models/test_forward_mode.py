"""The forward-mode derivative through networks with attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.models import unet


def test_forward_mode_through_attention():
    """d/dh of a small U-Net with attention along (x, c_noise) == differences, in float64; a second
    time, by its weights.
    """
    with jax.enable_x64(True):
        net = unet.UNet(
            num_classes=3,
            width=8,
            multipliers=(1,),
            blocks=1,
            attention=(4,),
            head_width=4,
            noise_embedding="smooth",
            second_time=True,
        )
        rng = np.random.default_rng(0)
        x, dx = jnp.asarray(rng.standard_normal((2, 2, 4, 4, 1)))
        c, label, to = jnp.asarray([0.3, -0.2]), jnp.asarray([0, 3]), jnp.asarray([0.2, 0.0])
        apply = jax.jit(
            lambda params, x, c, to: net.apply(params, x, c, {"label": label, "to": to})
        )
        shapes = jax.eval_shape(
            net.init, jax.random.key(0), x, c, {"label": label}
        )  # weights without a second time too
        params = jax.tree.map(
            lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), shapes
        )

        def run(x, c):
            return apply(params, x, c, to)

        dc, h = (
            jnp.full(2, 0.05),
            0.04,
        )  # the embedding is fast, and like the norms float32: steps must not be too small
        slope = jax.jit(lambda *v: jax.jvp(run, (x, c), v)[1])(dx, dc)
        ends = [run(x + step * h * dx, c + step * h * dc) for step in (-2, -1, 1, 2)]
        numeric = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        assert np.abs(slope).max() > 0.1
        assert_allclose(slope, numeric, atol=2e-4 * np.abs(slope).max())
        heard = apply(params, x, c, jnp.asarray([0.9, 0.0])) - run(x, c)
        assert np.abs(heard[0]).max() > 1e-3 and np.abs(heard[1]).max() < 1e-9
        params["params"]["condition"]["to"]["kernel"] *= 0  # as at init
        assert_allclose(run(x, c), apply(params, x, c, jnp.asarray([0.9, 0.7])), atol=1e-9)
