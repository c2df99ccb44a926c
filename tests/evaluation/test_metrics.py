"""Metrics between two sets, of points or of features: against brute force, closed forms, and the
law of chance.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.datasets import load_digits

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly import datasets, sampling
from diffusion_jax.assembly.kinds import autoencoder
from diffusion_jax.data.sources import Arrays
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import (
    classifier,
    features,
    frechet,
    judge,
    kid,
    memorization,
    mmd,
    points,
    prdc,
    rows,
    scores,
    sharpness,
    statistics,
)
from diffusion_jax.studies import evaluation
from tests import commands


# ---- points ----
def test_sliced_wasserstein_of_shifted_and_scaled_gaussians():
    """In one dimension W_2^2 = m^2 + (s - 1)^2; a shift by m in D dimensions has mean square m^2 /
    D over directions.
    """
    quantiles = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
    assert points.sliced_wasserstein(quantiles, 3 * quantiles + 1) == pytest.approx(
        np.sqrt(1 + 4), rel=1e-3
    )
    x = np.random.default_rng(0).normal(size=(500, 5))
    shift = np.array([2.0, 0, 0, 1, 0])
    assert points.sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(
        np.sqrt(5 / 5), rel=0.03
    )
    assert points.sliced_wasserstein(x, x[::-1]) == 0


def test_sliced_wasserstein_of_sets_of_unequal_size_is_the_optimal_transport():
    """Every point copied until the sizes agree is the same law, and there sorting is optimal."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)) + 1
    expected = points.sliced_wasserstein(np.repeat(a, 2, 0), np.repeat(b, 3, 0))
    assert points.sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-12)
    one = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])  # W_1, below W_2
    assert points.sliced_wasserstein(a[:, :1], b[:, :1]) > one > 0


def test_mmd_equals_the_double_sum_and_sees_a_shift():
    rng = np.random.default_rng(2)
    a, b = (
        rng.normal(size=(40, 7)) + 50,
        rng.normal(size=(30, 7)) + 50.5,
    )  # far from zero: the sets are centred first

    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * 3**2)).mean()

    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    np.testing.assert_allclose(mmd.squared_mmd(a, b, sigma=3.0), expected, rtol=1e-4)
    x, y, z = rng.normal(size=(3, 2000, 2))
    assert (
        points.mmd(x, x[::-1]) < 1e-3 < points.mmd(x, y) < 2 / np.sqrt(1000) < points.mmd(x, z + 1)
    )


def test_mode_weights_are_the_fractions_nearest():
    means = np.array([[0.0, 0], [4, 0], [0, 4]])
    x = np.concatenate([means[[0, 0, 0, 2]] + 0.5, [[9.0, 1]]])
    assert points.mode_weights(x, means).tolist() == [0.6, 0.2, 0.2]


def test_points_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"one dimension.*\(4, 2\) and \(4, 3\)"):
        points.sliced_wasserstein(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(UserError, match="not finite"):
        points.mmd(np.full((3, 2), np.nan), np.zeros((3, 2)))


# ---- rows ----
def test_work_over_rows_compiles_once_and_drops_the_filling():

    traced = []

    @jax.jit
    def double(x, offset):
        traced.append(x.shape)
        return {"twice": 2 * x + offset}

    x = np.arange(11.0, dtype=np.float32)
    out = rows.over_rows(double, x, np.float32(1), block=4)
    np.testing.assert_array_equal(out["twice"], 2 * x + 1)
    assert traced == [(4,)]


EIGHT = """
import numpy as np
from diffusion_jax.evaluation import classifier, kid, mmd, prdc, rows
rng = np.random.default_rng(0)
a, b = rng.normal(size=(45, 6)), rng.normal(size=(37, 6)) + 0.4
images = rng.integers(0, 256, (19, 5, 5, 1), np.uint8)
hidden, _ = rows.over_rows(classifier.forward, images, classifier.init((5, 5, 1), 3), block=8)
numbers = [*kid.kid(a, b), mmd.squared_mmd(a, b, sigma=2.0), *prdc.prdc(a, b, k=3), float(np.abs(hidden).sum())]
print(rows.devices(), *numbers)
"""


def test_eight_devices_give_the_numbers_of_one():
    root, lines = Path(__file__).parents[2], []
    for count in (1, 8):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", EIGHT],
            cwd=root,
            env=env,
            capture_output=True,
            text=True,
        )
        lines.append(np.array(done.stdout.split(), float)) if done.stdout else pytest.fail(
            done.stderr
        )
    assert lines[0][0] == 1 and lines[1][0] == 8
    np.testing.assert_allclose(lines[1][1:], lines[0][1:], rtol=1e-4)


# ---- KID ----
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
    found = kid.kid(x, y)
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
    draws = [kid.kid(*rng.normal(size=(2, 40, 8))) for _ in range(60)]
    values, errors = np.array(draws).T
    assert (
        abs(values.mean()) < 3 * values.std() / np.sqrt(60) and errors.mean() > 0.8 * values.std()
    )
    apart = np.array(
        [kid.kid(rng.normal(size=(40, 8)) + 0.7, rng.normal(size=(40, 8))) for _ in range(60)]
    )
    assert apart[:, 0].min() > 0 and 0.7 < apart[:, 1].mean() / apart[:, 0].std() < 1.4


# ---- precision, recall, density, coverage; memorization ----
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
    found = prdc.prdc(fake, real, k=k)
    np.testing.assert_allclose(found, prdc_by_hand(fake, real, k), atol=1e-6)
    assert 0 < found.recall < 1 and 0 < found.coverage < 1


def test_prdc_tells_a_lost_mode_from_bad_images():
    rng = np.random.default_rng(6)
    real = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 20])
    lost = prdc.prdc(rng.normal(size=(200, 2)), real)
    bad = prdc.prdc(
        np.concatenate(
            [rng.normal(size=(150, 2)), rng.normal(size=(150, 2)) + 20, np.full((100, 2), 10.0)]
        ),
        real,
    )
    assert lost.precision > 0.9 and 0.4 < lost.recall < 0.6 and 0.4 < lost.coverage < 0.6
    assert 0.65 < bad.precision < 0.8 and bad.recall > 0.9
    with pytest.raises(UserError, match="more than 5 images; got 4"):
        prdc.support(real[:4])


def test_copies_of_training_images_are_seen():
    rng = np.random.default_rng(7)
    train, held_out, fresh = rng.normal(size=(3, 400, 6))
    typical = prdc.nearest_distances(held_out, train)
    np.testing.assert_allclose(
        typical[:9], np.linalg.norm(held_out[:9, None] - train[None], axis=-1).min(1), rtol=1e-4
    )
    honest = memorization.memorization(fresh, train, typical)
    assert 0.9 < honest.ratio < 1.1 and honest.copies < 0.05
    copied = memorization.memorization(
        np.concatenate([fresh[:100], train[:300] + 1e-3]), train, typical
    )
    assert copied.ratio < 0.05 and 0.7 < copied.copies < 0.8


# ---- scores ----
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
    assert all(value < 0.75 for value in sharpness.relative(blurred, noisy).values())
    assert sharpness.relative(noisy, noisy) == {"laplacian": 1.0, "high_frequency": 1.0}


def test_the_inception_score_of_sure_and_of_undecided_logits():
    sure = 100 * np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    assert scores.inception_score(sure) == pytest.approx(4)
    assert (
        scores.inception_score(sure[:1])
        == scores.inception_score(np.zeros((5, 4)))
        == pytest.approx(1)
    )
    # two equally likely answers, one of them shared: KL by hand
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    expected = np.exp(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.5))
    assert scores.inception_score(np.log(p + 1e-12)) == pytest.approx(expected)
    assert scores.class_accuracy(sure, [0, 1, 2, 0, 0, 1, 0, 0]) == 5 / 8


# ---- the Frechet distance of an infinite sample, and its interval ----
def test_the_extrapolation_removes_most_of_the_bias_and_the_interval_holds_the_estimate():
    """Two laws |m|^2 = 1 apart, of equal covariance: the distance is exactly 1."""
    rng = np.random.default_rng(8)
    reference = frechet.root_of_moments(moments := frechet.Moments(10**6, np.zeros(20), np.eye(20)))
    draws = rng.normal(size=(60, 400, 20)) + np.sqrt(1 / 20)
    plain = np.array([frechet.frechet_distance(frechet.moments(x), moments) for x in draws])
    found = np.array([frechet.infinity(x, reference) for x in draws[:30]])
    assert plain.mean() > 1.12 and abs(found[:, 0].mean() - 1) < 0.03 and found[:, 1].max() < 0.2
    low, high = frechet.interval(draws[0], reference, resamples=60)
    assert low < plain[0] < high and 0.6 < (high - low) / (2 * 1.96 * plain.std()) < 1.6


@pytest.mark.parametrize("count, others", [(10, 50), (90, 50), (10, 20), (90, 20)])
def test_the_distance_to_a_root_is_the_exact_one(count, others):
    """On both sides: fewer images than features, and more."""
    rng = np.random.default_rng(9)
    features, other = (
        rng.normal(size=(count, 30)) @ rng.normal(size=(30, 30)),
        rng.normal(size=(others, 30)),
    )
    exact = frechet.frechet_distance(frechet.moments(features), frechet.moments(other))
    for root in (frechet.root_of(other), frechet.root_of_moments(frechet.moments(other))):
        np.testing.assert_allclose(frechet.distance_to(features, root), exact, rtol=1e-10)
        np.testing.assert_allclose(
            frechet.distance(frechet.root_of(features), root), exact, rtol=1e-10
        )


def test_the_frechet_distance_of_2000_images_equals_scipys():
    """Random features of real digits: 2,000 vectors of width 128, correlated as a network's are,
    against scipy's sqrtm.
    """

    pixels = load_digits().images.reshape(-1, 64) / 16
    rng = np.random.default_rng(10)
    hidden = np.maximum(
        np.concatenate([pixels, pixels[:203, ::-1]]) @ rng.normal(size=(64, 128)), 0
    )  # (2000, 128)
    hidden += 0.01 * rng.normal(size=hidden.shape)  # scipy's root wants full rank
    a, b = hidden[::2], hidden[1::2] * 1.1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(
        frechet.frechet_distance(frechet.moments(a), frechet.moments(b)), expected, rtol=1e-4
    )


def test_the_distance_of_constant_features_is_that_of_their_means():
    flat, other = np.full((5, 3), 2.0), np.random.default_rng(0).normal(size=(9, 3))
    expected = np.sum((other.mean(0) - 2) ** 2) + np.trace(np.cov(other, rowvar=False))
    assert frechet.distance_to(flat, frechet.root_of(other)) == pytest.approx(expected)
    assert frechet.distance_to(other, frechet.root_of(flat)) == pytest.approx(expected)
    assert frechet.frechet_distance(frechet.moments(flat), frechet.moments(other)) == pytest.approx(
        expected
    )


@pytest.fixture
def decomposed(monkeypatch):
    """The widths of all matrices that are decomposed, by the name of the decomposition."""
    widths = {"eigh": [], "eigvalsh": [], "svd": []}
    for name, seen in widths.items():
        original = getattr(np.linalg, name)
        monkeypatch.setattr(
            np.linalg,
            name,
            lambda a, *args, seen=seen, original=original, **kwargs: (
                seen.append(min(a.shape)) or original(a, *args, **kwargs)
            ),
        )
    return widths


def test_few_images_of_many_features_need_no_decomposition_of_their_width(decomposed):
    """And the reference's root, where it needs one, is computed once for all Fréchet scores of all
    sets.
    """
    rng = np.random.default_rng(14)
    metrics = ("frechet", "frechet_infinity", "frechet_interval")
    wide = Arrays(rng.integers(0, 256, (20, 20, 20, 3), np.uint8))
    judged = judge.against(wide, None, features=("pixels",), metrics=metrics)
    for _ in range(3):
        judged(rng.integers(0, 256, (12, 20, 20, 3), np.uint8))
    assert max(decomposed["eigvalsh"]) <= 12 and decomposed["eigh"] == decomposed["svd"] == []
    many = Arrays(rng.integers(0, 256, (50, 3, 3, 1), np.uint8))
    judged = judge.against(many, None, metrics=metrics)
    for _ in range(3):
        judged(rng.integers(0, 256, (12, 3, 3, 1), np.uint8))
    assert decomposed["eigh"] == [9] and decomposed["svd"] == []


# ---- reference statistics ----
def test_statistics_are_of_something_and_refused_for_anything_else(tmp_path):
    rng = np.random.default_rng(11)
    images = rng.integers(0, 256, (2500, 3, 3, 1), np.uint8)
    extractor, path = features.extractor("pixels"), tmp_path / "reference.npz"
    made = statistics.compute(extractor, Arrays(images), "noise", "train")
    np.testing.assert_allclose(
        made.moments.cov, np.cov(images.reshape(2500, 9) / 255, rowvar=False), atol=1e-8
    )
    assert (made.moments.count, made.of["count"], made.of["image_shape"]) == (2500, 2500, [3, 3, 1])
    statistics.save(path, made)
    read = statistics.load(path)
    np.testing.assert_array_equal(read.moments.cov, made.moments.cov)
    assert read.of == made.of
    statistics.need(read, path, **statistics.describe(extractor, Arrays(images), "noise", "train"))
    others = {
        "digest": statistics.describe(
            extractor._replace(digest="classifier-2"), Arrays(images), "noise", "train"
        ),
        "resize": statistics.describe(
            extractor._replace(resize="bicubic"), Arrays(images), "noise", "train"
        ),
        "data": statistics.describe(extractor, Arrays(images), "digits", "train"),
        "split": statistics.describe(extractor, Arrays(images), "noise", "test"),
        "data_digest": statistics.describe(extractor, Arrays(images[::-1]), "noise", "train"),
        "image_shape": statistics.describe(extractor, Arrays(images[:, :2]), "noise", "train"),
        "count": statistics.describe(extractor, Arrays(images[:2000]), "noise", "train"),
    }
    for key, of in others.items():
        with pytest.raises(
            UserError, match=f"^.*reference.npz' holds statistics of another {key} .*$"
        ):
            statistics.need(read, path, **of)


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path):
    images = np.random.default_rng(13).integers(0, 256, (1000, 3, 3, 1), np.uint8)
    seen, partial = [], tmp_path / "reference.partial.npz"

    def outputs(images, describe="", stop=False):
        if stop and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(images))
        return features.Outputs(features.pixels(images))

    extractor = features.extractor("pixels")._replace(
        outputs=lambda images: outputs(images, stop=True)
    )
    with pytest.raises(KeyboardInterrupt):
        statistics.compute(
            extractor, Arrays(images), "noise", "train", partial=partial, save_every=0
        )
    with pytest.raises(UserError, match="is unfinished"):
        statistics.need(statistics.load(partial), partial)
    extractor = extractor._replace(outputs=outputs)
    made = statistics.compute(
        extractor, Arrays(images), "noise", "train", partial=partial, save_every=0
    )
    assert seen == [256] * 4 and made.moments.count == 1000 and not list(tmp_path.iterdir())
    np.testing.assert_allclose(
        made.moments.cov, np.cov(images.reshape(1000, 9) / 255, rowvar=False), atol=1e-8
    )
    statistics.save(
        partial, statistics.Statistics(frechet.moments(np.zeros((9, 9))), {"count": 9})
    )  # of another set
    again = statistics.compute(extractor, Arrays(images), "noise", "train", partial=partial)
    np.testing.assert_array_equal(again.moments.cov, made.moments.cov)


def test_statistics_that_were_changed_or_are_none_are_refused(tmp_path):
    made = statistics.Statistics(
        frechet.moments(np.random.default_rng(0).normal(size=(9, 3))), {"extractor": "pixels"}
    )
    statistics.save(tmp_path / "good.npz", made)
    with np.load(tmp_path / "good.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "changed.npz", **arrays | {"mean": arrays["mean"] + 1})
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    for name, said in {
        "changed": "contents do not match",
        "other": "holds no statistics",
        "absent": "there is no",
    }.items():
        with pytest.raises(UserError, match=said):
            statistics.load(tmp_path / f"{name}.npz")


# ---- the judge ----
@pytest.fixture(scope="module")
def splits():
    """Bright above or bright below: two classes."""
    rng = np.random.default_rng(12)

    def draw(count):
        labels = np.arange(count) % 2
        images = rng.integers(0, 160, (count, 6, 6, 1), np.uint8)
        images[labels == 1, :3] += 60
        images[labels == 0, 3:] += 60
        return Arrays(images, labels)

    return draw(300), draw(100)


def test_the_judge_gives_two_numbers_by_default_and_all_on_request(splits, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        classifier, "_train", lambda images, labels, seen: classifier.init(images.shape[1:], 2)
    )
    train, test = splits
    images, labels = test.columns["image"], test.columns["label"]
    plain = judge.against(train, labels)(images)
    assert plain.keys() == {"accuracy", "frechet"} and plain == judge.on_real(train, test)
    everything = judge.against(
        train,
        labels,
        metrics=(*judge.STANDARD, "memorization", "cmmd", "frechet_infinity", "frechet_interval"),
        held_out=test,
    )
    found = everything(images)
    assert found.keys() == {
        "accuracy",
        "frechet",
        "frechet_infinity",
        "frechet_low",
        "frechet_high",
        "kid",
        "kid_se",
        "cmmd",
        "precision",
        "recall",
        "density",
        "coverage",
        "nearest_ratio",
        "copies",
    }
    read = judge.against(
        train,
        labels,
        features=("classifier",),
        metrics=("accuracy", "frechet", "class_accuracy", "inception_score"),
    )
    assert read(images).keys() == {
        "accuracy",
        *(f"{n}/classifier" for n in ("frechet", "class_accuracy", "inception_score")),
    }
    assert found["frechet"] == plain["frechet"] and found["nearest_ratio"] == 1
    worse = everything(
        np.roll(images, 3, 1)
    )  # every image shows the other class: the law is the same, the labels are not
    assert (
        worse["accuracy"] < 0.1 < 0.9 < found["accuracy"]
        and worse["frechet"] < 2 * found["frechet"]
    )
    with pytest.raises(UserError, match="did you mean 'frechet'"):
        judge.against(train, None, metrics=("frechte",))


def test_the_judge_takes_statistics_instead_of_images(splits):
    train, test = splits
    images = test.columns["image"]
    made = statistics.compute(features.extractor("pixels"), train, "bars", "train")
    found = judge.against(train, None, statistics=made)(images)["frechet"]
    np.testing.assert_allclose(found, judge.against(train, None)(images)["frechet"], rtol=1e-9)


def noise(count, shape=(4, 4, 1), labels=None):
    return Arrays(np.random.default_rng(15).integers(0, 256, (count, *shape), np.uint8), labels)


@pytest.fixture
def untrained(monkeypatch):
    """A classifier that is not trained, as its training takes a minute."""
    monkeypatch.setattr(
        classifier, "_train", lambda images, labels, seen: classifier.init(images.shape[1:], 2)
    )
    monkeypatch.setattr(classifier, "_keep", lambda path, params: None)


CASES = {  # train, test, labels of the samples -> what is measured by default, what a note says
    "labels of two classes": (
        noise(40, labels=np.arange(40) % 2),
        noise(9),
        [0, 1],
        "accuracy frechet kid prdc",
        None,
    ),
    "no labels": (
        noise(40),
        noise(9),
        None,
        "frechet kid prdc",
        "accuracy is left out: the samples have no labels",
    ),
    "one class": (
        noise(40, labels=np.zeros(40)),
        noise(9),
        [0, 0],
        "frechet kid prdc",
        "accuracy is left out: the training images",
    ),
    "a class that is rare": (
        noise(4000, labels=np.arange(4000) == 7),
        noise(9),
        [0, 1],
        "accuracy frechet kid prdc",
        None,
    ),
    "labels asked of data without": (
        noise(40),
        noise(9),
        [0, 1],
        "frechet kid prdc",
        "accuracy is left out: the training images",
    ),
    "few held-out images": (
        noise(36),
        noise(4),
        None,
        "frechet kid prdc",
        "real test images have no prdc: there are 4 of them, and 6",
    ),
    "no held-out images": (
        noise(36),
        noise(0),
        None,
        "frechet kid prdc",
        "real test images have no frechet, kid, prdc",
    ),
    "four training images": (
        noise(4),
        noise(2),
        None,
        "frechet kid",
        "prdc is left out: it needs 6 training images, and there are 4",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_data_do_not_allow_is_left_out_with_a_note_and_the_rest_is_measured(
    case, monkeypatch
):
    train, test, labels, measured, said = CASES[case]
    chosen = judge.choose(train, labels, held_out=test, count=20)
    assert chosen.metrics == tuple(measured.split()) and [e.name for e in chosen.features] == [
        "pixels"
    ]
    assert any(said in note for note in chosen.notes) if said else not chosen.notes
    monkeypatch.setattr(
        judge.recognition,
        "recognizer",
        lambda images, labels: lambda images: np.zeros(len(images), int),
    )
    judged = judge.against(
        train, labels, features=chosen.features, metrics=chosen.metrics, held_out=test
    )
    assert judged(noise(20).columns["image"], labels and np.resize(labels, 20)).keys() >= {
        "frechet",
        "kid",
    }
    real = judge.on_real(train, test, judged)
    assert set(real) == {
        "frechet",
        "kid",
        "kid_se",
        "precision",
        "recall",
        "density",
        "coverage",
    } - missing(chosen, len(test))


def missing(chosen, count):
    """The scores of real test images that so few of them do not have."""
    several = (
        set()
        if "prdc" in chosen.metrics and count >= 6
        else {"precision", "recall", "density", "coverage"}
    )
    return several | (
        {"frechet", "kid", "kid_se"} if not count else {"kid", "kid_se"} if count < 3 else set()
    )


def test_fid_is_the_frechet_distance_of_inception():
    assert judge.resolve_names([], ["FID", "kid"]) == (["inception"], ["frechet", "kid"])
    assert judge.resolve_names(["Pixels"], ["frechet", "fid"]) == (["pixels", "inception"], ["frechet"])
    assert judge.resolve_names([], ["fid_infinity"]) == (["inception"], ["frechet_infinity"])
    assert judge.resolve_names(["classifier"], ["kid"]) == (["classifier"], ["kid"])


def test_what_cannot_be_measured_at_all_is_refused_with_the_reason(untrained):
    one = noise(1)
    for how, said in (
        (
            {},
            "nothing to measure: .*frechet is left out: it needs 2 training images, and there are 1",
        ),
        ({"metrics": ["inception_score"]}, "features pixels have no logits"),
        (
            {"features": ["classifier"]},
            "features classifier cannot be used: the training images are not labeled",
        ),
        ({"metrics": ["memorization"]}, "there are no held-out real images"),
    ):
        with pytest.raises(UserError, match=said):
            judge.choose(one if not how else noise(30), None, **how)
    chosen = judge.choose(noise(30), None, features=["pixels", "classifier"], metrics=["frechet"])
    assert [e.name for e in chosen.features] == [
        "pixels"
    ] and "classifier are left out" in chosen.notes[0]


def test_the_frechet_distance_alone_needs_no_recognizer(splits, monkeypatch):
    train, test = splits
    monkeypatch.setattr(judge.recognition, "recognizer", None)
    judged = judge.against(train, test.columns["label"], metrics=("frechet",))
    assert judged(test.columns["image"]).keys() == {"frechet"}


def test_default_features_are_at_most_a_thousand_numbers(untrained, capsys):
    shape = (24, 18, 3)  # 1,296
    labelled = noise(30, shape, np.arange(30) % 2)
    assert [e.name for e in judge.choose(labelled, None).features] == ["classifier"]
    (small,) = judge.choose(noise(30, shape), None).features
    assert small.name == "thumbnails" and small.features(
        noise(2, shape).columns["image"]
    ).shape == (2, 12 * 9 * 3)
    assert judge.against(labelled, None)(labelled.columns["image"]).keys() == {
        "frechet"
    }  # named without its features
    assert (
        features.default((31, 31, 1), True) == "pixels"
        and features.default((32, 32, 1), False) == "thumbnails"
    )


def test_thumbnails_are_means_over_boxes_also_at_the_edges():
    images = noise(3, (25, 26, 3)).columns["image"]
    small = features.reduced(images)
    assert small.shape == (3, 13, 13, 3)
    np.testing.assert_allclose(small[:, 2, 5], images[:, 4:6, 10:12].mean((1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(small[:, 12, 5], images[:, 24, 10:12].mean(1) / 255, rtol=1e-6)


def test_fewer_images_than_features_are_warned_of_once(capsys):
    judge.note.cache_clear()
    for _ in range(2):
        judge.against(noise(40, (6, 7, 1)), None, count=17)
        judge.against(noise(60, (6, 7, 1)), None, count=50)
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 2
        and "17 samples are fewer than the 42 features" in said[0]
        and "40 reference images are fewer" in said[1]
    )


# ---- the commands ----
@pytest.mark.parametrize(
    "test, classes, said", [(noise(0), 0, "there are none"), (noise(3), 2, "none with labels")]
)
def test_an_autoencoder_without_held_out_images_is_evaluated_without_them(
    test, classes, said, monkeypatch, capsys
):

    judge.note.cache_clear()
    model = SimpleNamespace(num_classes=classes, kind=autoencoder.KIND)
    trained = SimpleNamespace(experiment=model, params=())
    assert evaluation.held_out(
        trained, data.Dataset("noise", noise(9), test, (4, 4, 1), 0, ())
    ) == ({}, "")
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "train, test, said",
    [
        (noise(1), noise(9), "it needs 2 training images, and there are 1"),
        (noise(30), noise(9, (3, 3, 1)), "width"),
    ],
)
def test_evaluation_fails_before_anything_is_sampled(train, test, said, monkeypatch):

    trained = SimpleNamespace(experiment=SimpleNamespace(num_classes=0, encoder=None), params=())
    for name in ("sample_with", "plan"):
        monkeypatch.setattr(sampling, name, lambda *args: pytest.fail("sampled first"))
    with pytest.raises(UserError, match=said):
        evaluation.score_samples(
            trained, data.Dataset("noise", train, test, (4, 4, 1), 0, ()), 20, 1, 20
        )


def test_statistics_are_made_by_one_command_and_evaluation_refuses_others(tmp_path):

    path = tmp_path / "digits.npz"
    data_dir = f"--config.data.data_dir={tmp_path}"
    done = commands.run(
        "statistics", "--config=configs/digits.py:vp", data_dir, "--split=test", f"--out={path}"
    )
    assert (
        done.returncode == 0
        and "data digits, split test, image_shape [8, 8, 1], count 297" in done.stdout
    ), done.stderr
    config = digits.get_config("vp")
    config.data.data_dir = str(tmp_path)
    dataset = datasets.dataset(config)
    extractors = [features.extractor("pixels")]
    found = evaluation.read_reference(str(path), dataset, extractors)
    real = np.stack([dataset.test[i]["image"] for i in range(297)]).reshape(297, 64) / 255
    np.testing.assert_allclose(found.moments.mean, real.mean(0), atol=1e-6)
    config.data.image_size = 16
    with pytest.raises(UserError, match=r"another image_shape \(\[8, 8, 1\], here \[16, 16, 1\]\)"):
        evaluation.read_reference(str(path), datasets.dataset(config), extractors)


def test_the_report_names_every_number_and_its_features():

    mean = {
        "accuracy": 0.9876,
        "frechet": 0.1,
        "frechet/inception": 12.0,
        "kid/inception": 0.002,
        "coverage": 0.5,
    }
    result = {
        "mean": mean,
        "std": dict.fromkeys(mean, 0.001),
        "real": {"accuracy": 0.99, "frechet": 0.05},
    }
    lines = evaluation.report(result).splitlines()
    assert lines[0] == "|  | samples | real test images |"
    assert lines[2:] == [
        "| recognized | 98.8 ± 0.1 % | 99.0 % |",
        "| Fréchet distance (pixels) | 0.100 ± 0.001 | 0.050 |",
        "| FID (inception) | 12.000 ± 0.001 | - |",
        "| KID x 1000 (inception) | 2.000 ± 1.000 | - |",
        "| coverage (pixels) | 0.500 ± 0.001 | - |",
    ]
