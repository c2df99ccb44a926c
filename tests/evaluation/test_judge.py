"""The judge: what is measured of which data, and what is left out with a note."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import (
    choice,
    classifier,
    features,
    judge,
    statistics,
)
from tests.evaluation.noise import noise


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
        metrics=(*choice.STANDARD, "memorization", "cmmd", "frechet_infinity", "frechet_interval"),
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
    "labels for data without labels": (
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
    chosen = choice.choose(train, labels, held_out=test, count=20)
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
    assert choice.resolve_names([], ["FID", "kid"]) == (["inception"], ["frechet", "kid"])
    assert choice.resolve_names(["Pixels"], ["frechet", "fid"]) == (
        ["pixels", "inception"],
        ["frechet"],
    )
    assert choice.resolve_names([], ["fid_infinity"]) == (["inception"], ["frechet_infinity"])
    assert choice.resolve_names(["classifier"], ["kid"]) == (["classifier"], ["kid"])


def test_names_of_published_metrics_add_their_features():
    assert choice.resolve_names([], ["sfid", "FD_DINOv2", "cmmd", "kid"]) == (
        ["inception_spatial", "dinov2_vitl14", "clip_vitl14_336"],
        ["frechet", "cmmd", "kid"],
    )
    assert choice.resolve_names(["pixels"], ["mmd", "cmmd"]) == (
        ["pixels", "clip_vitl14_336"],
        ["cmmd"],
    )
    assert choice.resolve_names([], ["mmd"]) == ([], ["cmmd"])
    for alias in choice.ALIASES.values():
        assert alias.metric in choice.NAMES
        assert alias.features in {"", *features.EXTRACTORS}


def test_what_cannot_be_measured_at_all_is_refused_with_the_reason(untrained):
    one = noise(1)
    for how, said in (
        (
            {},
            "nothing to measure: .*frechet is left out: it needs 2 training images, and there are "
            "1",
        ),
        ({"metrics": ["inception_score"]}, "features pixels have no logits"),
        (
            {"features": ["classifier"]},
            "features classifier cannot be used: the training images are not labeled",
        ),
        ({"metrics": ["memorization"]}, "there are no held-out real images"),
    ):
        with pytest.raises(UserError, match=said):
            choice.choose(one if not how else noise(30), None, **how)
    vectors = Arrays(np.zeros((30, 5), np.float32))
    with pytest.raises(UserError, match="it needs features with logits, which are of images"):
        choice.choose(vectors, None, metrics=["inception_score"])
    chosen = choice.choose(noise(30), None, features=["pixels", "classifier"], metrics=["frechet"])
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
    labeled = noise(30, shape, np.arange(30) % 2)
    assert [e.name for e in choice.choose(labeled, None).features] == ["classifier"]
    (small,) = choice.choose(noise(30, shape), None).features
    assert small.name == "thumbnails" and small.features(
        noise(2, shape).columns["image"]
    ).shape == (2, 12 * 9 * 3)
    assert judge.against(labeled, None)(labeled.columns["image"]).keys() == {
        "frechet"
    }  # named without its features
    assert (
        features.default((31, 31, 1), True) == "pixels"
        and features.default((32, 32, 1), False) == "thumbnails"
    )


def test_images_above_32_are_judged_by_inception_where_its_weights_are(monkeypatch, capsys):
    large, small = (33, 33, 1), (32, 32, 3)
    assert features.default(large, True, installed=True) == "inception"
    assert features.default(small, True, installed=True) == "classifier"
    assert features.default((40, 20, 1), True, installed=True) == "pixels"  # 800 numbers
    for there, found, said in ((True, "inception", ""), (False, "thumbnails", "get_weights")):
        choice.note.cache_clear()
        monkeypatch.setattr(choice.weights, "installed", lambda name, there=there: there)
        assert choice.default_features(noise(3, large)) == found
        assert said in capsys.readouterr().err
        assert choice.default_features(noise(3, (32, 32, 3))) == "thumbnails"
        assert capsys.readouterr().err == ""


def test_thumbnails_are_means_over_boxes_also_at_the_edges():
    images = noise(3, (25, 26, 3)).columns["image"]
    small = features.reduced(images)
    assert small.shape == (3, 13, 13, 3)
    np.testing.assert_allclose(small[:, 2, 5], images[:, 4:6, 10:12].mean((1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(small[:, 12, 5], images[:, 24, 10:12].mean(1) / 255, rtol=1e-6)


def test_fewer_images_than_features_are_warned_of_once(capsys):
    choice.note.cache_clear()
    for _ in range(2):
        judge.against(noise(40, (6, 7, 1)), None, count=17)
        judge.against(noise(60, (6, 7, 1)), None, count=50)
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 2
        and "17 samples are fewer than the 42 features" in said[0]
        and "40 reference images are fewer" in said[1]
    )
