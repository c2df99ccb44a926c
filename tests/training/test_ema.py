"""Power averages against their weights by hand, and averages of other lengths out of snapshots
against those kept all along.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from configs import toy
from diffusion_jax.assembly import train, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import ema, post_hoc, restoring
from diffusion_jax.training.post_hoc import Profile

STEPS, TRACKED = 1024, (0.05, 0.1)


def weights(length, steps):
    """(steps,): those of a power average in the limit of many steps, k^gamma, from the exact update
    (1 - 1/n)^(gamma + 1).
    """
    beta = (1 - 1 / np.arange(1, steps + 1)) ** (ema.gamma(length) + 1)
    return (1 - beta) * np.append(np.cumprod(beta[:0:-1])[::-1], 1.0)


# ---- power averages
@pytest.mark.parametrize("length, gamma", [(0.05, 16.97), (0.1, 6.94), (0.25, 0.72)])
def test_the_length_is_the_standard_deviation_of_the_weights(length, gamma):
    """The first two are printed in the paper, section 3.1; and the moments of the weights t^gamma
    by quadrature.
    """
    g = ema.gamma(length)
    assert g == pytest.approx(gamma, abs=0.02)
    moment = [quad(lambda t, k: (g + 1) * t ** (g + k), 0, 1, args=(k,))[0] for k in (1, 2)]
    assert np.sqrt(moment[1] - moment[0] ** 2) == pytest.approx(length, rel=1e-6)


def test_power_averages_weigh_each_step_as_they_say():
    """Step k is the unit vector k, so the average is its own weights; the initial value leaves no
    trace.
    """
    steps, batch = 48, 32
    average = ema.powers(TRACKED)
    value = average.init(jnp.full(steps, 7.0))

    def step(value, n):
        return average.update(value, jnp.eye(steps)[n], n * batch, batch), None

    value, _ = jax.lax.scan(step, value, jnp.arange(steps))
    for length in TRACKED:
        found = np.asarray(value[ema.power_name(length)], np.float64)
        np.testing.assert_allclose(found, weights(length, steps), rtol=1e-4, atol=1e-7)
        assert found.sum() == pytest.approx(1, abs=1e-5)
        late = np.arange(
            24, 49
        )  # the law itself, up to the width of a step: within a share of gamma / step
        np.testing.assert_allclose(
            found[23:] / found[-1], ((late - 0.5) / 47.5) ** ema.gamma(length), rtol=0.05
        )


def test_half_lives_and_powers_together_are_both():
    params = {"w": jnp.float32(1.0)}
    parts = ema.halflives((100,), ramp=None), ema.powers((0.1,))
    both = ema.together(*parts)
    value = both.init({"w": jnp.float32(3.0)})
    assert set(value) == {"100", "power_0.1"}
    after = both.update(value, params, jnp.float32(50), 50)
    for part in parts:
        for key, tree in part.update(value, params, jnp.float32(50), 50).items():
            np.testing.assert_array_equal(after[key]["w"], tree["w"])


def test_lengths_that_do_not_fit_are_refused():
    for lengths, said in (
        ((0.3,), "0.3 .* must be above 0 and at most 0.28"),
        ((0.0,), "above 0"),
        ((0.1, 0.1), "differ"),
    ):
        with pytest.raises(UserError, match=said):
            ema.powers(lengths)
    assert post_hoc.length_of("post_hoc(0.12)") == 0.12 and post_hoc.length_of("power_0.05") is None
    with pytest.raises(UserError, match="cannot read 'post_hoc\\(1e\\)'"):
        post_hoc.length_of("post_hoc(1e)")


# ---- the fit
def test_inner_products_by_quadrature():
    def p(t, g, end):
        return (g + 1) * t**g / end ** (g + 1) * (t <= end)

    def product(t, a, t_a, b, t_b):
        return p(t, a, t_a) * p(t, b, t_b)

    for (a, t_a), (b, t_b) in (
        ((16.97, 3.0), (6.94, 2.0)),
        ((0.72, 1.0), (6.94, 4.0)),
        ((2.0, 5.0), (2.0, 5.0)),
    ):
        factors = (a, t_a, b, t_b)
        exact = quad(product, 0, min(t_a, t_b), args=factors)[0]
        assert post_hoc._inner(a, t_a, b, t_b) == pytest.approx(exact, rel=1e-6)


@pytest.fixture(scope="module")
def walk():
    """(STEPS, 400): parameters that walk at random, which no average of another length approximates
    well.
    """
    return np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 400)), axis=0)


@pytest.mark.parametrize(
    "every, length, error",
    [(32, 0.03, 0.02), (32, 0.07, 2e-3), (32, 0.2, 5e-3), (128, 0.07, 0.03), (128, 0.15, 0.03)],
)
def test_an_average_of_another_length_comes_out_of_snapshots(walk, every, length, error):
    """Its distance from the one kept all along, as a share of the distance of the nearest average
    that was kept.
    """

    def direct(length, step):
        return weights(length, step) @ walk[:step]

    have = [Profile(each, step) for step in range(every, STEPS + 1, every) for each in TRACKED]
    x, misfit = post_hoc.fit(have, Profile(length, STEPS))
    found = sum(c * direct(*profile) for c, profile in zip(x, have, strict=True))
    exact = direct(length, STEPS)
    nearest = min(np.linalg.norm(direct(each, STEPS) - exact) for each in TRACKED)
    assert np.linalg.norm(found - exact) < error * nearest
    assert x.sum() == pytest.approx(1, abs=1e-9) and np.abs(x).max() < 20
    profile = sum(
        c * np.pad(weights(*p), (0, STEPS - p.step)) for c, p in zip(x, have, strict=True)
    )  # what misfit measures
    wanted = weights(length, STEPS)
    assert misfit == pytest.approx(
        np.linalg.norm(profile - wanted) / np.linalg.norm(wanted), rel=0.2, abs=2e-4
    )


def test_an_average_that_was_kept_is_given_back():
    have = [Profile(length, step) for step in range(50, 1001, 50) for length in TRACKED]
    x, misfit = post_hoc.fit(have, Profile(0.1, 1000))
    np.testing.assert_allclose(x, np.arange(40) == 39, atol=1e-8)
    assert misfit < 1e-8


# ---- snapshots
def tree(vector):
    return {
        "dense": {"kernel": np.float32(vector[:6]).reshape(2, 3), "bias": np.float32(vector[6:9])}
    }


@pytest.fixture
def folder(walk, tmp_path):
    for step in (256, 512, 768, 1024):
        post_hoc.save(
            tmp_path,
            step,
            {ema.power_name(s): tree(weights(s, step) @ walk[:step]) for s in TRACKED},
        )
    return tmp_path


def test_snapshots_on_disk_give_the_average_as_a_tree(walk, folder):
    found = post_hoc.reconstruct(folder, 0.08, tree(np.zeros(9)))
    have = [Profile(each, step) for step in post_hoc.steps(folder) for each in TRACKED]
    x, misfit = post_hoc.fit(have, Profile(0.08, STEPS))
    expected = tree(sum(c * (weights(*p) @ walk[: p.step]) for c, p in zip(x, have, strict=True)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found.params, expected)
    assert (found.step, found.misfit, len(have)) == (1024, misfit, 8)
    early = post_hoc.reconstruct(folder, 0.1, tree(np.zeros(9)), step=512)
    np.testing.assert_allclose(
        early.params["dense"]["bias"], (weights(0.1, 512) @ walk[:512])[6:9], rtol=1e-5
    )


def test_what_is_wrong_with_snapshots_is_said(folder, tmp_path):
    with pytest.raises(
        UserError, match="no snapshots in .*nowhere'; train with --config.ema.powers"
    ):
        post_hoc.reconstruct(tmp_path / "nowhere", 0.1, tree(np.zeros(9)))
    with pytest.raises(UserError, match="step 256 .* is of another model"):
        post_hoc.reconstruct(folder, 0.1, {"dense": np.zeros(2)})
    path = folder / "512.npz"
    whole = path.read_bytes()
    for damaged in (
        whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        whole[: len(whole) // 2],
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="512.npz' is damaged; restore a copy, or delete it"):
            post_hoc.reconstruct(folder, 0.1, tree(np.zeros(9)))
    path.unlink()
    assert post_hoc.reconstruct(folder, 0.1, tree(np.zeros(9))).misfit < 1e-6  # the others serve


# ---- the command
def test_a_run_keeps_snapshots_from_which_its_workdir_gives_any_length(tmp_path):
    config = toy.get_config("vp")
    config.model.update(width=8, blocks=1)
    config.training.update(steps=8, eval_every=0, sample_every=0, checkpoint_every=8)
    config.ema.update(powers=TRACKED, snapshot_every=3)
    root = tmp_path / "run"
    assert train.train(config.lock(), str(root))
    assert post_hoc.steps(root / "ema_snapshots") == [3, 6, 8]  # and the last step
    config = workdir.saved_config(str(root))
    config.sampler.ema = "post_hoc(0.1)"
    made, kept = (
        workdir.load(root, config),
        restoring.restore_params(root / "checkpoints", "power_0.1").state,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), made.params, kept
    )
    assert (made.step, made.weights) == (8, "post_hoc(0.1)")
