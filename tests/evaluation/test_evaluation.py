"""Recognition, Fréchet distance, generation by seed: against closed forms and scipy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import frechet, generate, recognition
from diffusion_jax.evaluation.features import pixels


# ---- recognition ----
@pytest.fixture(scope="module")
def digits():

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return (
        images[:1437],
        bunch.target[:1437],
        images[1437:],
        bunch.target[1437:],
    )  # the last fifth: writers never seen


def test_real_digits_are_recognized(digits):
    recognize = recognition.recognizer(*digits[:2], cache_dir=None)
    assert recognition.recognized(recognize, *digits[2:]).mean() > 0.96


def test_the_fit_is_kept_and_belongs_to_its_data(digits, tmp_path, monkeypatch):
    images, labels = digits[0][:150], digits[1][:150]
    first = recognition.recognizer(images, labels, cache_dir=tmp_path)(digits[2])
    (kept,) = tmp_path.iterdir()
    fits = []
    fit = recognition._fit
    monkeypatch.setattr(recognition, "_fit", lambda *args: fits.append(1) or fit(*args))
    again = recognition.recognizer(images, labels, cache_dir=tmp_path)(digits[2])
    assert not fits and (again == first).all()
    recognition.recognizer(images, (labels + 1) % 10, cache_dir=tmp_path)
    recognition.recognizer(images, labels, cache_dir=tmp_path, limit=100)
    assert len(fits) == 2 and len(list(tmp_path.iterdir())) == 3
    kept.write_bytes(kept.read_bytes()[:100])  # damaged
    assert (
        recognition.recognizer(images, labels, cache_dir=tmp_path)(digits[2]) == first
    ).all() and len(fits) == 3


@pytest.mark.parametrize("classes, zoom", [(10, 1), (2, 1), (4, 2)])
def test_the_machine_of_plain_arrays_decides_as_scikit_learns_does(digits, classes, zoom):
    """On held-out images and on noise, where votes are tied; with two classes, of which
    scikit-learn turns the sign; with PCA.
    """

    images, labels = (part[digits[1] < classes][:150] for part in digits[:2])
    noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    images, unseen = (
        np.kron(x, np.ones((1, zoom, zoom, 1), np.uint8))
        for x in (images, np.concatenate([digits[2][:100], noise]))
    )
    flat = [x.reshape(len(x), -1).astype(np.float32) / np.float32(255) for x in (images, unseen)]
    steps = [PCA(recognition.COMPONENTS, random_state=0)] * (zoom > 1) + [
        SVC(C=recognition.PENALTY, gamma="scale")
    ]
    theirs = make_pipeline(*steps).fit(flat[0], labels).predict(flat[1])
    np.testing.assert_array_equal(
        recognition.predict(recognition._fit(images, labels), unseen), theirs
    )


def test_recognition_works_without_a_cache_that_can_be_written(digits, tmp_path):
    (tmp_path / "file").write_text("")
    recognize = recognition.recognizer(
        digits[0][:100], digits[1][:100], cache_dir=tmp_path / "file"
    )
    assert recognize(digits[2]).shape == digits[3].shape


def test_recognition_of_larger_color_images_from_a_subset():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    images = rng.integers(0, 100, (300, 12, 12, 3), np.uint8)
    images[labels == 1, :, :6] += 100  # the left half is bright
    recognize = recognition.recognizer(images[:200], labels[:200], cache_dir=None, limit=80)
    assert recognition.recognized(recognize, images[200:], labels[200:]).mean() == 1.0
    with pytest.raises(UserError, match=r"\(12, 12, 3\).*\(12, 12, 1\)"):
        recognize(images[..., :1])


def test_accuracy_is_the_fraction_that_agrees():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    assert recognition.recognized(lambda x: x[:, 0, 0, 0], images, [0, 1, 2, 0]).sum() == 3
    with pytest.raises(UserError, match="4 images and 3 labels"):
        recognition.recognized(lambda x: x[:, 0, 0, 0], images, [0, 1, 2])


def test_recognition_refuses_what_it_cannot_learn():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    with pytest.raises(UserError, match="uint8"):
        recognition.recognizer(images.astype(np.int16), np.arange(3))
    with pytest.raises(UserError, match="two classes"):
        recognition.recognizer(images, np.zeros(3, int))


# ---- Frechet distance ----
def correlated(rng, count, width, scale=1.0, shift=0.0):
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) * scale + shift


def test_moments_stream_in_batches_of_any_size():
    x = (
        correlated(np.random.default_rng(0), 60, 5) + 1e4
    )  # a mean far from zero: sums of squares would lose the covariance
    streamed = frechet.stream([x[:1], x[1:2], x[2:40], x[40:]])
    assert streamed.count == 60
    np.testing.assert_allclose(streamed.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(streamed.cov, np.cov(x, rowvar=False), rtol=1e-9)
    together = frechet.merge(frechet.moments(x[40:]), frechet.moments(x[:40]))
    np.testing.assert_allclose(together.cov, streamed.cov, rtol=1e-9)


def test_moments_of_pixels():
    images = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 1), np.uint8)
    moments = frechet.stream(pixels(images[i : i + 3]) for i in range(0, 7, 3))
    np.testing.assert_allclose(moments.mean, images.reshape(7, 6).mean(0) / 255, rtol=1e-6)
    np.testing.assert_allclose(
        moments.cov, np.cov(images.reshape(7, 6) / 255, rowvar=False), rtol=1e-5
    )


def test_frechet_distance_of_diagonal_gaussians_is_the_sum_over_coordinates():
    rng = np.random.default_rng(0)
    (mean_a, mean_b), (std_a, std_b) = rng.normal(size=(2, 6)), rng.uniform(0, 2, (2, 6))
    a, b = (
        frechet.Moments(100, mean, np.diag(std**2))
        for mean, std in ((mean_a, std_a), (mean_b, std_b))
    )
    expected = np.sum((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2)
    np.testing.assert_allclose(frechet.frechet_distance(a, b), expected, rtol=1e-12)


def test_frechet_distance_equals_scipys_matrix_square_root():
    rng = np.random.default_rng(1)
    a = frechet.moments(correlated(rng, 200, 12))
    b = frechet.moments(correlated(rng, 150, 12, scale=1.5, shift=0.3))
    root = scipy.linalg.sqrtm(a.cov @ b.cov).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2 * root)
    np.testing.assert_allclose(frechet.frechet_distance(a, b), expected, rtol=1e-8)


def test_frechet_distance_with_fewer_images_than_features():
    rng = np.random.default_rng(2)
    x, y = correlated(rng, 10, 40), rng.normal(size=(10, 40))
    a, b = frechet.moments(x), frechet.moments(y)
    assert frechet.frechet_distance(a, a) < 1e-12 * np.trace(a.cov)
    np.testing.assert_allclose(
        frechet.frechet_distance(a, b), frechet.frechet_distance(b, a), rtol=1e-12
    )
    # the trace of the root is the nuclear norm of the product of the centered data matrices: no
    # square root at all
    product = (x - x.mean(0)) @ (y - y.mean(0)).T / 9
    expected = (
        np.sum((a.mean - b.mean) ** 2)
        + np.trace(a.cov + b.cov)
        - 2 * np.linalg.norm(product, "nuc")
    )
    np.testing.assert_allclose(frechet.frechet_distance(a, b), expected, rtol=1e-7)


def test_frechet_distance_refuses_sets_that_cannot_be_compared():
    a, b, one = (
        frechet.moments(np.random.default_rng(0).normal(size=shape))
        for shape in ((5, 3), (5, 4), (1, 3))
    )
    with pytest.raises(UserError, match="width 3 and 4"):
        frechet.frechet_distance(a, b)
    with pytest.raises(UserError, match="at least two"):
        frechet.frechet_distance(a, one)


# ---- generation ----
def sampler(keys, cond):
    """Stands for a real one: image i depends on keys[i] and cond[i] alone."""
    images = jax.vmap(lambda key: jax.random.uniform(key, (2, 2, 1), minval=-1.2, maxval=1.2))(keys)
    return images if cond is None else images * 0.1 + cond["label"][:, None, None, None] / 10


def test_images_do_not_depend_on_the_batch_size_and_compile_once():
    shapes = []

    @jax.jit
    def sample_fn(keys, cond):
        shapes.append(keys.shape)
        return sampler(keys, cond)

    keys, cond = generate.seeds_to_keys(range(10)), {"label": np.arange(10)}
    whole = generate.generate(sample_fn, keys, cond, batch_size=10, progress=False)
    assert whole.shape == (10, 2, 2, 1) and whole.dtype == np.uint8
    assert (whole == transforms.to_uint8(sampler(keys, cond))).all()
    for batch_size in (3, 16):
        shapes.clear()
        assert (
            generate.generate(sample_fn, keys, cond, batch_size=batch_size, progress=False) == whole
        ).all()
        assert shapes == [(batch_size,)]


def test_images_do_not_depend_on_the_other_seeds():
    some = generate.generate(
        sampler, generate.seeds_to_keys([7, 123, 5]), batch_size=2, progress=False
    )
    others = generate.generate(
        sampler, generate.seeds_to_keys(range(4, 8)), batch_size=4, progress=False
    )
    assert (
        (some[0] == others[3]).all() and (some[2] == others[1]).all() and (some[0] != some[2]).any()
    )


def test_progress_goes_to_stderr_and_only_on_request(capfd):
    keys = generate.seeds_to_keys(range(5))
    generate.generate(sampler, keys, batch_size=2, progress=False)
    assert capfd.readouterr() == ("", "")
    generate.generate(sampler, keys, batch_size=2, description="drawing digits")
    out, err = capfd.readouterr()
    assert (
        out == ""
        and err.startswith("drawing digits: 5/5 samples")
        and "samples/s" in err
        and err.count("\n") == 1
    )


def test_generation_refuses_bad_conditions_and_reports_broken_images():
    keys = generate.seeds_to_keys(range(3))
    with pytest.raises(UserError, match=r"cond\['label'\] has 2 entries for 3 images"):
        generate.generate(sampler, keys, {"label": np.arange(2)}, batch_size=2, progress=False)
    with pytest.raises(UserError, match="1 of 2 samples are not finite"):
        generate.generate(
            lambda keys, cond: jnp.array([[0.0], [jnp.nan]]), keys, batch_size=2, progress=False
        )
    with pytest.raises(UserError, match="at least one image"):
        generate.generate(sampler, keys[:0], batch_size=2, progress=False)


def test_to_uint8_inverts_the_scaling_of_the_data_and_clips():
    levels = np.arange(256, dtype=np.uint8)
    assert (transforms.to_uint8(levels.astype(np.float32) / 127.5 - 1) == levels).all()
    assert transforms.to_uint8(
        np.array([-7.0, 7.0, 0.51 / 127.5 - 1, 0.49 / 127.5 - 1])
    ).tolist() == [0, 255, 1, 0]


def test_seed_k_is_the_key_of_k():
    keys = generate.seeds_to_keys([3, 2**32 - 1])
    expected = [jax.random.key_data(jax.random.key(seed)) for seed in (3, 2**32 - 1)]
    assert (jax.random.key_data(keys) == jnp.stack(expected)).all()


@pytest.mark.parametrize(
    "text, seeds", [("0-3,100", [0, 1, 2, 3, 100]), ("7", [7]), (" 5 , 2-2", [5, 2])]
)
def test_seeds_are_read(text, seeds):
    assert parsing.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1,,2",
        "5-2",
        "-3",
        "1-2-3",
        "1.5",
        "0-3,2",
        "4294967296",
        "0-99999999999",
        "0-4000000000",
    ],
)
def test_seeds_that_are_nonsense_are_refused_in_one_line(text):
    with pytest.raises(UserError, match=f"^seeds '{text}'.*$"):
        parsing.parse_seeds(text)


def test_samples_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "samples.npz"
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    generate.save_npz(path, images, seeds=range(4), nfe=50)
    with np.load(path) as file:
        assert sorted(file) == ["images", "nfe", "seeds"]
        assert (
            (file["images"] == images).all()
            and file["images"].dtype == np.uint8
            and file["seeds"].tolist() == [0, 1, 2, 3]
        )

    def dies(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", dies)
    with pytest.raises(KeyboardInterrupt):
        generate.save_npz(path, images)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_seeds_that_follow_the_largest_are_refused():
    assert len(generate.seeds_to_keys(range(2**32 - 2, 2**32))) == 2
    with pytest.raises(UserError, match=f"seed {2**32}: .*begin at {2**32 - 3} or less"):
        generate.seeds_to_keys(range(2**32 - 2, 2**32 + 1))
