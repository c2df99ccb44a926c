"""What a folder of images means is decided by rules, and a folder with two meanings is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import layout
from diffusion_jax.data.tree import Tree, natural
from tests.data.folders import counts, split

ROOT = Path("data")


def arranged(*listed: str, how: str = "", empty: tuple[str, ...] = ()) -> layout.Arranged:
    """What a folder with these images means: 'cat*12' is cat/0.png to cat/11.png, 'x.png' that
    file.
    """
    images, folders = [], set(empty)
    for spec in listed:
        name, _, count = spec.partition("*")
        names = [f"{name}/{i}.png" for i in range(int(count))] if count else [name]
        images += [tuple(name.strip("/").split("/")) for name in names]
    for image in images:
        folders |= {"/".join(image[:i]) for i in range(1, len(image))}
    tree = Tree(sorted(images), sorted(tuple(f.split("/")) for f in folders), [], [])
    return split(layout.arrange(ROOT, tree, how))


ONE = {  # name: (images, classes, images of train and test together, whether the folder is split)
    "classes": (("cat*12", "dog*12"), ("cat", "dog"), 24, False),
    "no labels": (("*24",), (), 24, False),
    "nested in a class": (("cat/big*6", "cat/small*6", "dog*12"), ("cat", "dog"), 24, False),
    "one class": (("cat*12",), ("cat",), 12, False),
    "train and test": (
        ("train/cat*3", "train/dog*3", "test/cat*1", "test/dog*1"),
        ("cat", "dog"),
        8,
        True,
    ),
    "without labels": (("train*3", "test*2"), (), 5, True),
    "train alone": (("train/cat*12", "train/dog*12"), ("cat", "dog"), 24, False),
    "a wrapper": (("animals/cat*12", "animals/dog*12"), ("cat", "dog"), 24, False),
    "two wrappers": (("a/b/cat*12", "a/b/dog*12"), ("cat", "dog"), 24, False),
    "a wrapper of splits": (("set/train/cat*3", "set/test/cat*2"), ("cat",), 5, True),
    "wrappers in splits": (
        ("train/images/cat*3", "train/images/dog*3", "test/all/cat*2"),
        ("cat", "dog"),
        8,
        True,
    ),
    "a wrapper called as its split": (
        ("train/train/cat*3", "train/train/dog*3", "test/test/cat*2"),
        ("cat", "dog"),
        8,
        True,
    ),
    "a class called train, in splits": (
        ("train/car*3", "train/train*3", "test/train*2"),
        ("car", "train"),
        8,
        True,
    ),
    "a class called test, in splits": (
        ("train/car*3", "train/test*3", "test/test*2"),
        ("car", "test"),
        8,
        True,
    ),
}


@pytest.mark.parametrize("name", ONE)
def test_a_folder_with_one_meaning(name):
    listed, classes, total, split = ONE[name]
    found = arranged(*listed)
    assert found.classes == classes and sum(counts(found)) == total
    assert {f.label for f in found.train} == set(classes or [""])
    assert found.rule.startswith("split by" if split else "a tenth")
    if split:
        assert all("train" in f.path.parts for f in found.train) and all(
            "test" in f.path.parts for f in found.test
        )


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
@pytest.mark.parametrize(
    "test", ["test", "testing", "val", "valid", "validation", "dev", "Test", "VAL"]
)
def test_names_of_splits_in_any_case(train, test):
    found = arranged(f"{train}/a*3", f"{train}/b*3", f"{test}/a*2")
    assert counts(found) == (6, 2) and found.classes == ("a", "b")
    assert found.rule == f"split by {train}/ and {test}/"


def test_a_second_held_out_split_is_said_to_be_unused():
    found = arranged("train*5", "val*3", "test*2")
    assert (
        counts(found) == (5, 2)
        and found.rule == "split by train/ and test/"
        and found.dropped == ["val/ (3 images)"]
    )


TWO = {  # name: (images, what the line says, {layout: (classes, images)})
    "a class called train": (
        ("bus*12", "car*12", "train*12"),
        "bus and car are not used .*bus, car and train are classes",
        {"splits": ((), 12), "classes": (("bus", "car", "train"), 36)},
    ),
    "another case": (
        ("bus*12", "Train*12"),
        "bus is not used .*Train and bus are classes",
        {"splits": ((), 12), "classes": (("Train", "bus"), 24)},
    ),
    "splits and another folder": (
        ("train/a*3", "test/a*2", "extra*9"),
        "extra is not used",
        {"splits": (("a",), 5), "classes": (("extra", "test", "train"), 14)},
    ),
    "images next to train": (
        ("train*12", "*30"),
        "the 12 training images, and the 30 next to it are not used",
        {"splits": ((), 12), "flat": ((), 42)},
    ),
    "images next to classes": (
        ("a*12", "stray.png"),
        r"both in sub-folders and next to them \(stray.png\)",
        {"flat": ((), 13)},
    ),
    "images next to classes in a split": (
        ("train/a*12", "train/stray.png", "test/a*2"),
        "both in sub-folders",
        {"flat": ((), 15)},
    ),
    "test without train": (
        ("test*3", "cat*5"),
        "has test, but no train/",
        {"classes": (("cat", "test"), 8)},
    ),
    "a class called dev": (
        ("dev*3", "ops*5"),
        "has dev, but no train/",
        {"classes": (("dev", "ops"), 8)},
    ),
    "two names of one split": (
        ("train*3", "Training*5"),
        "has Training and train, which mean the same",
        {"classes": (("Training", "train"), 8)},
    ),
    "two names of the other": (
        ("train*3", "val*2", "dev*2"),
        "has dev and val, which mean the same",
        {"classes": (("dev", "train", "val"), 7)},
    ),
    "splits of other names": (
        ("one/cat*3", "one/dog*3", "two/cat*2", "two/dog*2"),
        "one and two are classes .* cat and dog",
        {"classes": (("one", "two"), 10)},
    ),
    "splits in classes": (
        ("cat/train*3", "dog/train*3"),
        "cat and dog are classes .*, or train,",
        {"classes": (("cat", "dog"), 6)},
    ),
    "split names with more words": (
        ("train_images*3", "Test Images*2"),
        "are classes .*, or Test Images and train_images are splits",
        {"classes": (("Test Images", "train_images"), 5)},
    ),
    "split names with years": (
        ("train2017*3", "val2017*2"),
        "train2017 and val2017 are splits",
        {"classes": (("train2017", "val2017"), 5)},
    ),
    "splits of other names, in a split": (
        ("train/one/cat*3", "train/one/dog*3", "train/two/cat*2", "train/two/dog*2"),
        "one and two are classes",
        {"splits": (("one", "two"), 10)},
    ),
    "splits in a split": (
        ("train/train*3", "train/test*2"),
        "train holds test and train: name this folder",
        {"splits": (("test", "train"), 5)},
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_a_folder_with_two_meanings_is_refused_and_a_key_chooses(name):
    listed, match, choices = TWO[name]
    with pytest.raises(UserError, match=match) as error:
        arranged(*listed)
    assert "\n" not in str(error.value)
    for how, (classes, total) in choices.items():
        assert f"layout={how}" in str(error.value)
        found = arranged(*listed, how=how)
        assert found.classes == classes and sum(counts(found)) == total, how


@pytest.mark.parametrize(
    "listed",
    [
        ("a*3", "train*3"),
        ("train2017*3", "val2017*3"),
        ("dev*3", "ops*3"),
        ("dev*3", "val*3", "train*3"),
        ("a/x*3", "a/y*3", "b/x*3", "b/y*3"),
    ],
)
def test_what_to_type_for_classes_in_a_wrapper_names_the_wrapper(listed):
    """data.layout=classes alone would make the wrapper the only class."""
    with pytest.raises(UserError, match="--config.data.path=data/set --config.data.layout=classes"):
        arranged(*(f"set/{one}" for one in listed))


def test_a_layout_that_is_not_there():
    with pytest.raises(UserError, match="has cat and dog, but no train/"):
        arranged("cat*5", "dog*5", how="splits")
    with pytest.raises(UserError, match="has images, but no train/"):
        arranged("*5", how="splits")
    with pytest.raises(
        UserError, match="unknown config.data.layout 'class'; did you mean 'classes'"
    ):
        arranged("cat*5", how="class")


def test_an_empty_split_is_refused_and_an_empty_class_is_named():
    with pytest.raises(UserError, match="data/test holds no images; add some, or remove it"):
        arranged("train*5", empty=("test",))
    with pytest.raises(UserError, match="data/Train holds no images"):
        arranged("test*5", empty=("Train",))
    assert arranged("cat*9", "dog*9", empty=("eel", "fox/young")).dropped == [
        "eel/, which holds nothing that is read"
    ]
    assert arranged("train/cat*9", "test/cat*2", empty=("train/eel",)).dropped == [
        "train/eel/, which holds nothing that is read"
    ]


def test_numbered_folders_are_in_natural_order():
    assert arranged(*[f"{k}*4" for k in range(12)]).classes == tuple(map(str, range(12)))
    names = ["class1", "class2", "class10", "class10b", "class11"]
    assert sorted(reversed(names), key=natural) == names
    assert sorted(["b", "a", "B", "_", "é", "01", "1"], key=natural) == [
        "01",
        "1",
        "B",
        "_",
        "a",
        "b",
        "é",
    ]


@pytest.mark.parametrize("sizes", [(30, 1), (1, 1, 8), (2, 2, 2), (1, 2), (40, 1, 1, 1, 1, 1)])
def test_the_last_image_of_a_class_is_not_held_out(sizes):
    for salt in "abcdefgh":  # other names, other draws
        found = arranged(*[f"{salt}{k}*{size}" for k, size in enumerate(sizes)])
        assert {f.label for f in found.train} == {
            f"{salt}{k}" for k in range(len(sizes))
        } and found.test
        assert sum(counts(found)) == sum(sizes)


def test_where_nothing_can_be_held_out_it_is_said():
    people = [f"person_{k}*1" for k in range(40)]
    with pytest.raises(
        UserError, match=r"each of the 40 classes has one example.*\(--config.data.layout=flat\)"
    ):
        arranged(*people)
    assert sum(counts(arranged(*people, how="flat"))) == 40


def test_the_held_out_tenth_is_that_of_earlier_versions():
    """The hash of the relative path decides, so that earlier runs keep their splits."""
    assert [f.name for f in arranged("a*20", "b*20").test] == ["a/19.png", "b/0.png", "b/16.png"]
