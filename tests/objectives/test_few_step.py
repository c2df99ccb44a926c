"""Few-step objectives: with the exact function they have no loss, and it is where training ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import arrays
from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Prediction
from diffusion_jax.objectives import consistency, meanflow
from diffusion_jax.objectives.base import FewStepExample, FewStepNetworks, per_example
from diffusion_jax.samplers import ancestral, base, ode, singlestep
from tests.families import public
from tests.objectives.exact_functions import EDM, FLOW, MIXTURE, NORMAL, TRIG, exact, solve

COUNT = 512


OBJECTIVES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": make
    for module in (consistency, meanflow)
    for name, make in public(module, "FewStep").items()
    if name != "discrete_time"
}


def examples(objective, target, progress, count=COUNT):
    keys = arrays.example_keys(jax.random.key(0), count)
    return objective.draw(keys, target.draw(jax.random.key(1), count).astype("float64"), progress)


def scored(objective, target, process, drawn, progress, shift=0.0):
    """(losses (B,), per-example d loss / d(c, d) (2, B)) of the student exact + shift + c + d x in
    v, at c = d = 0.
    """
    perfect = exact(target, process)

    def moved(c, d):
        def denoise(x, t, cond=None):
            """v-hat + c + d z for z = x / r, r^2 = alpha^2 + sigma^2: of order one at every noise
            level.
            """
            x0, eps = perfect(x, t, cond)[:2]
            alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
            r = jnp.hypot(alpha, sigma)
            more = (shift + c[:, None] + d[:, None] * x / r) / r
            return Prediction(x0 - sigma * more, eps + alpha * more)

        return denoise

    def losses(c, d):
        zero = jnp.zeros_like(c)
        constant = moved(zero, zero)
        found = objective.loss(
            FewStepNetworks(moved(c, d), constant, constant, target.denoise(process)),
            drawn,
            None,
            progress,
        )
        return found.sum(), found

    zero = jnp.zeros(len(drawn.t))
    gradients, found = jax.jit(jax.grad(losses, argnums=(0, 1), has_aux=True))(zero, zero)
    return np.asarray(found), np.stack(gradients)


def of_teacher(target):
    """The teacher's step, without error."""
    return base.memoryless(
        lambda noise, x, t, s, denoise, process, cond: solve(
            target, process, x, jnp.full(1, t), jnp.full(1, s)
        )
    )


@pytest.mark.parametrize("target", [NORMAL, MIXTURE], ids=["gaussian", "mixture"])
def test_with_a_teacher_the_exact_function_has_no_loss(target):
    """It has no gradient either, and a function that is off by 0.1 has both.

    An objective with steps has this property where the teacher's step is exact.
    """
    with jax.enable_x64(True):
        cases = {
            "cd": (consistency.distillation(EDM, solver=of_teacher(target)), EDM),
            "scd": (consistency.continuous_distillation(TRIG), TRIG),
            "meanflow": (meanflow.meanflow(FLOW, ratio=0.7, distilled=True), FLOW),
            "imf": (meanflow.improved(FLOW, ratio=0.7, distilled=True), FLOW),
        }
        for name, (objective, process) in cases.items():
            drawn = examples(objective, target, 1.0, 16)
            losses, gradient = scored(objective, target, process, drawn, 1.0)
            assert np.all(losses < 1e-8), (name, losses.max())
            assert np.all(np.abs(gradient) < 1e-3), (name, np.abs(gradient).max())
        losses, gradient = scored(objective, target, process, drawn, 1.0, shift=0.1)
        assert np.median(losses) > 1e-2 and np.median(np.abs(gradient)) > 1e-2


def test_in_steps_the_loss_of_the_exact_function_is_the_teachers_own_error():
    """A solver of order p errs by h^(p + 1) in a step, squared: twice as many steps divide the loss
    by 4^(p + 1).
    """
    with jax.enable_x64(True):
        for solver, order in ((ancestral.ddim(), 1), (ode.edm_heun(), 2), (singlestep.dpm_2s(), 2)):
            losses = []
            for steps in (81, 161):
                objective = consistency.distillation(EDM, solver=solver, steps=steps)
                t, s = EDM.t_max * jnp.asarray([0.03, 0.1, 0.3]), None

                def rho(u):
                    return u ** (1 / 7)

                h = (rho(20.0) - rho(0.002)) / (steps - 1)
                s = (rho(20.0 * t) - h) ** 7 / 20.0
                x_t = jnp.asarray([[0.3, 1.0], [2.0, -1.0], [-4.0, 3.0]])
                drawn = FewStepExample(x_t, t, x_t, x_t, s)
                losses.append(scored(objective, NORMAL, EDM, drawn, 0.0)[0])
            found = np.log2(losses[0] / losses[1]) / 2 - 1
            assert_allclose(found, order, atol=0.15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_function_is_where_training_ends(name):
    """The mean gradient there is zero to four standard errors, on Gaussian data, at fine steps;
    what is off is pulled back.

    On Gaussian data, because there robust means (pseudo-Huber, adaptive weights, normalized
    tangents) are means.
    """
    process = FLOW if name.startswith("meanflow") else EDM
    with jax.enable_x64(True):
        fine = {"consistency.distillation": dict(steps=320), "consistency.training": dict(s1=640)}
        objective = OBJECTIVES[name](process, **fine.get(name, {}))
        drawn = examples(objective, NORMAL, 1.0, 4 * COUNT)
        _, gradient = scored(objective, NORMAL, process, drawn, 1.0)
        mean, error = gradient.mean(1), gradient.std(1) / np.sqrt(gradient.shape[1])
        assert np.all(np.abs(mean) < 4 * error + 1e-5), (mean, error)
        _, gradient = scored(objective, NORMAL, process, drawn, 1.0, shift=0.3)
        assert gradient[0].mean() > 4 * gradient[0].std() / np.sqrt(gradient.shape[1]), (
            "the control"
        )


def test_draw_takes_one_key_for_the_batch():
    """Traced, not run, for all; the keys of the examples are those of base.sample."""
    for name, make in OBJECTIVES.items():
        draw = make(FLOW if name.startswith("meanflow") else EDM).draw
        drawn = jax.eval_shape(draw, jax.random.key(0), jnp.ones((3, 2)), 0.5)
        assert (drawn.x_t.shape, drawn.t.shape, drawn.s.shape) == ((3, 2), (3,), (3,)), name
    found = per_example(lambda keys, x, *rest: (keys, *rest))(
        jax.random.key(0), jnp.ones((3, 2)), 0.5
    )
    assert_array_equal(
        jax.random.key_data(found[0]),
        jax.random.key_data(arrays.example_keys(jax.random.key(0), 3)),
    )
    assert found[1] == 0.5
