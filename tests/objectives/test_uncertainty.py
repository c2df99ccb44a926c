"""The learned uncertainty: its best value is the logarithm of the loss, in EDM2 and in sCM."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits_few_step
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Prediction
from diffusion_jax.models.ncsnpp import NCSNpp
from diffusion_jax.models.uncertainty import LogVariance
from diffusion_jax.models.unet import UNet
from diffusion_jax.objectives import consistency, uncertainty
from diffusion_jax.objectives.base import FewStepExample, FewStepNetworks
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.training import step
from tests.experiments.small_runs import small
from tests.models.networks import TINY, shapes


def test_the_network_learns_the_logarithm_of_the_mean_loss():
    """From losses that are noisy, over two decades, at noise levels in [-1, 1]."""
    module, tx = LogVariance(16), optax.adam(optax.cosine_decay_schedule(0.1, 600))
    params = module.init(jax.random.key(0), jnp.zeros(1))

    def mean(c):
        return jnp.exp(2.3 * jnp.sin(2 * c))

    def move(carry, key):
        params, state = carry
        at, noise = jax.random.split(key)
        c = jax.random.uniform(at, (256,), minval=-1, maxval=1)
        losses = mean(c) * jax.random.exponential(noise, (256,))
        grads = jax.grad(
            lambda params: uncertainty.balanced("test", losses, module.apply(params, c)).mean()
        )(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 600)
    (params, _), _ = jax.lax.scan(move, (params, tx.init(params)), keys)
    c = jnp.linspace(-0.95, 0.95, 20)
    np.testing.assert_allclose(module.apply(params, c), jnp.log(mean(c)), atol=0.12)


@pytest.mark.parametrize("network", [UNet, NCSNpp])
def test_networks_return_their_uncertainty_where_it_is_asked_for(network):
    tiny = {key: TINY[key] for key in ("width", "multipliers", "blocks", "attention")}
    module, x = network(uncertainty=4, **tiny), jnp.zeros((2, 8, 8, 1))
    params, plain = shapes(module, x.shape)
    assert params["uncertainty"]["last"]["kernel"].shape == (4, 1)
    asked = jax.eval_shape(
        lambda params: module.apply({"params": params}, x, jnp.zeros(2), log_variance=True), params
    )
    assert asked[0].shape == plain.shape == x.shape and asked[1]["log_variance"].shape == (2,)
    with pytest.raises(UserError, match="uncertainty=128"):
        jax.eval_shape(
            lambda key: network(**tiny).init(key, x, jnp.zeros(2), log_variance=True),
            jax.random.key(0),
        )


def test_the_weighted_loss_of_scm_is_least_at_the_logarithm_of_its_loss():
    process, keys = schedules.TrigFlow(), jax.random.split(jax.random.key(0), 4)
    x0, eps, x = (jax.random.normal(key, (8, 3)) for key in keys[:3])
    t = jax.random.uniform(keys[3], (8,), minval=0.1, maxval=0.9)
    drawn = FewStepExample(*gaussian.corrupt(process, x0, eps, t), s=t)

    def denoiser(u):
        def denoise(x_t, t, cond=None) -> Prediction:
            estimate = 0.5 * x_t + 0.1 * jnp.sin(x + t[:, None])
            return gaussian.from_x0(process, x_t, estimate, t)._replace(log_variance=u)

        return denoise

    def loss(u, **options):
        networks = FewStepNetworks(denoiser(u), denoiser(None), denoiser(None))
        return consistency.continuous(process, **options).loss(networks, drawn, None, 1.0)

    best = jnp.log(loss(None))
    np.testing.assert_allclose(loss(best, learned_weight=True), 1 + best, rtol=1e-5)
    slope = jax.grad(lambda u: loss(u, learned_weight=True).sum())(best)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    with pytest.raises(UserError, match="consistency.continuous needs a network"):
        loss(None, learned_weight=True)


def test_the_recipe_of_scm_learns_its_weighting():
    """The recipe names it, and a config trains the network's uncertainty and no other network's."""
    recipe = importlib.import_module("configs.papers.scm_cifar10")
    for name in ("sct", "scd"):
        config = recipe.get_config(name)
        assert "learned_weight=True" in config.objective and config.model.uncertainty == 128
    config = small(digits_few_step.get_config("sct"))
    config.objective = "consistency.continuous(learned_weight=True)"
    config.model.uncertainty = 4
    experiment = assemble(config, (8, 8, 1), 10)
    params = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}

    def run(params):
        keys = jax.random.split(jax.random.key(0), 4)
        return experiment.kind.loss(experiment)(params, batch, keys, step.Now(0, {}))[0]

    assert jax.eval_shape(run, params).shape == (4,) and "uncertainty" in params
