"""KID, precision, recall, density, coverage, memorization, sharpness, inception score."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import (
    kid,
    memorization,
    prdc,
    scores,
    sharpness,
)
from diffusion_jax.evaluation.estimators import ESTIMATORS, Real
from diffusion_jax.evaluation.samples import Summary


def kid_by_hand(x, y):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m, xx, yy = len(x), len(y), kernel(x, x), kernel(y, y)
    return (
        (xx.sum() - xx.trace()) / (n * (n - 1))
        + (yy.sum() - yy.trace()) / (m * (m - 1))
        - 2 * kernel(x, y).mean()
    )


def test_kid_and_its_jackknife_equal_leaving_out_one_by_one():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 5)) + 0.5, rng.normal(size=(9, 5))
    found = kid.kid(x, kid.reference(y))
    np.testing.assert_allclose(found.value, kid_by_hand(x, y), rtol=1e-5)
    without = [
        [kid_by_hand(np.delete(x, i, 0), y) for i in range(12)],
        [kid_by_hand(x, np.delete(y, i, 0)) for i in range(9)],
    ]
    variance = sum((len(w) - 1) * np.var(w) for w in without)
    np.testing.assert_allclose(found.standard_error, np.sqrt(variance), rtol=1e-4)


def test_kid_is_unbiased_and_its_error_is_the_spread():
    """Equal laws: zero on average, where the Frechet distance of as few images is far from it.
    Apart: the error is right.
    """
    rng = np.random.default_rng(4)

    def drawn(shift: float) -> kid.Kid:
        x, y = rng.normal(size=(2, 40, 8))
        return kid.kid(x + shift, kid.reference(y))

    draws = [drawn(0.0) for _ in range(60)]
    values, errors = np.array(draws).T
    assert (
        abs(values.mean()) < 3 * values.std() / np.sqrt(60) and errors.mean() > 0.8 * values.std()
    )
    apart = np.array([drawn(0.7) for _ in range(60)])
    assert apart[:, 0].min() > 0 and 0.7 < apart[:, 1].mean() / apart[:, 0].std() < 1.4


def prdc_by_hand(fake, real, k):
    def distance(a, b):
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(i, x):
        return sorted(distance(x[i], other) for j, other in enumerate(x) if j != i)[k - 1]

    of_real, of_fake = ([radius(i, x) for i in range(len(x))] for x in (real, fake))
    inside = [[distance(f, r) <= of_real[j] for j, r in enumerate(real)] for f in fake]
    found = [any(distance(r, f) <= of_fake[i] for i, f in enumerate(fake)) for r in real]
    covered = [any(row[j] for row in inside) for j in range(len(real))]
    return (
        np.mean([any(row) for row in inside]),
        np.mean(found),
        np.sum(inside) / k / len(fake),
        np.mean(covered),
    )


@pytest.mark.parametrize("k", [1, 3])
def test_prdc_equals_plain_loops(k):
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(30, 3)) + 20, rng.normal(size=(25, 3)) * 0.5 + 20.6
    found = prdc.prdc(fake, prdc.support(real, k=k))
    np.testing.assert_allclose(found, prdc_by_hand(fake, real, k), atol=1e-6)
    assert 0 < found.recall < 1 and 0 < found.coverage < 1


def test_prdc_tells_a_lost_mode_from_bad_images():
    rng = np.random.default_rng(6)
    real = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 20])
    lost = prdc.prdc(rng.normal(size=(200, 2)), prdc.support(real))
    bad = prdc.prdc(
        np.concatenate(
            [rng.normal(size=(150, 2)), rng.normal(size=(150, 2)) + 20, np.full((100, 2), 10.0)]
        ),
        prdc.support(real),
    )
    assert lost.precision > 0.9 and 0.4 < lost.recall < 0.6 and 0.4 < lost.coverage < 0.6
    assert 0.65 < bad.precision < 0.8 and bad.recall > 0.9
    with pytest.raises(UserError, match="more than 5 images; got 4"):
        prdc.support(real[:4])


def test_cmmd_is_its_closed_form_on_unit_vectors():
    """Distinct unit vectors are sqrt(2) apart, so that k = exp(-1 / 100), and k = 1 of one with
    itself: 1000 MMD^2 = 1000 (1 - exp(-1 / 100)) (1 / N + 1 / M), which the estimate without these
    pairs would make zero.
    """
    vectors = np.eye(10, dtype=np.float32)
    real = Real(vectors[:4], None, None, None)
    score = ESTIMATORS["cmmd"].prepare(real)
    found = score(Summary(6, vectors[4:], grouped=False))["cmmd"].value
    np.testing.assert_allclose(found, 1000 * (1 - np.exp(-0.01)) * (1 / 4 + 1 / 6), rtol=1e-4)
    assert score(Summary(4, vectors[:4], grouped=False))["cmmd"].value == pytest.approx(0, abs=1e-4)


def test_copies_of_training_images_are_seen():
    rng = np.random.default_rng(7)
    train, held_out, fresh = rng.normal(size=(3, 400, 6))
    typical = prdc.nearest_distances(held_out, train)
    np.testing.assert_allclose(
        typical[:9], np.linalg.norm(held_out[:9, None] - train[None], axis=-1).min(1), rtol=1e-4
    )
    honest = memorization.memorization(prdc.nearest_distances(fresh, train), typical)
    assert 0.9 < honest.ratio < 1.1 and honest.copies < 0.05
    mixed = np.concatenate([fresh[:100], train[:300] + 1e-3])
    copied = memorization.memorization(prdc.nearest_distances(mixed, train), typical)
    assert copied.ratio < 0.05 and 0.7 < copied.copies < 0.8


def test_sharpness_of_waves_is_their_closed_form():
    """A wave A cos(k x) has Laplacian (2 cos k - 2) A cos(k x), of variance (2 - 2 cos k)^2 A^2 /
    2, and energy A^2 / 2 at k.
    """
    x, rounding = np.arange(32), 1 / 255
    for cycles, high in ((4, False), (12, True)):
        k, amplitude = 2 * np.pi * cycles / 32, 100 / 255
        wave = np.rint(127 + 100 * np.cos(k * x)).astype(np.uint8)
        images = np.broadcast_to(wave[None, None, :, None], (2, 32, 32, 1))
        energy = amplitude**2 / 2
        np.testing.assert_allclose(
            sharpness.laplacian_variance(images), (2 - 2 * np.cos(k)) ** 2 * energy, rtol=0.05
        )
        np.testing.assert_allclose(
            sharpness.high_frequency(images), energy * high, rtol=0.02, atol=rounding**2
        )
    noisy = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    blurred = ((noisy[:, :-1].astype(int) + noisy[:, 1:]) // 2).astype(np.uint8)
    assert all(found.value < 0.75 for found in sharpness.relative(blurred, noisy).values())
    same = sharpness.relative(noisy, noisy)
    assert {name: found.value for name, found in same.items()} == dict.fromkeys(same, 1.0)
    ratios = sharpness.high_frequency(noisy) / sharpness.high_frequency(noisy).mean()
    half = 1.959964 * ratios.std(ddof=1) / np.sqrt(len(noisy))
    assert same["high_frequency"].interval == pytest.approx(half)


def test_the_inception_score_of_sure_and_of_undecided_logits():
    def score(logits):
        return scores.inception_score(scores.logit_sums(logits))

    sure = 100 * np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    assert score(sure) == pytest.approx(4)
    assert score(sure[:1]) == score(np.zeros((5, 4))) == pytest.approx(1)
    # two equally likely answers, one of them shared: KL by hand
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    expected = np.exp(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.5))
    assert score(np.log(p + 1e-12)) == pytest.approx(expected)
    assert scores.classified(sure, [0, 1, 2, 0, 0, 1, 0, 0]).sum() == 5
    halves = scores.merge(scores.logit_sums(sure[:3]), scores.logit_sums(sure[3:]))
    assert scores.inception_score(halves) == pytest.approx(4)
