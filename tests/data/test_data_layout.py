"""What a folder of images means is decided by rules that are said, and a folder with two meanings
is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data import layout, transforms
from diffusion_jax.data.held_out import held_out
from diffusion_jax.data.tree import Tree, ignored, natural, walk
from diffusion_jax.errors import UserError
from tests.data.test_data import values, write_image

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


def split(found: layout.Arranged) -> layout.Arranged:
    """With a tenth held out, where it is not split."""
    train, test = (found.train, found.test) if found.test else held_out(found.train, "data")
    return found._replace(train=train, test=test)


def counts(found: layout.Arranged) -> tuple[int, int]:
    return len(found.train), len(found.test)


# ---- layouts that have one meaning ----
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


# ---- layouts that have two ----
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
    "images beside train": (
        ("train*12", "*30"),
        "the 12 training images, and the 30 beside it are not used",
        {"splits": ((), 12), "flat": ((), 42)},
    ),
    "images beside classes": (
        ("a*12", "stray.png"),
        r"both in sub-folders and beside them \(stray.png\)",
        {"flat": ((), 13)},
    ),
    "images beside classes in a split": (
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
        "eel/, which has no images"
    ]
    assert arranged("train/cat*9", "test/cat*2", empty=("train/eel",)).dropped == [
        "train/eel/, which has no images"
    ]


# ---- names and numbers ----
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
        UserError, match=r"each of the 40 classes has one image.*\(--config.data.layout=flat\)"
    ):
        arranged(*people)
    assert sum(counts(arranged(*people, how="flat"))) == 40


def test_the_held_out_tenth_is_that_of_earlier_versions():
    """By the hash of the relative path, so that runs trained before keep their splits."""
    assert [f.name for f in arranged("a*20", "b*20").test] == ["a/19.png", "b/0.png", "b/16.png"]


# ---- links ----
def folder(tmp_path, *names, count=3):
    for name in names:
        for k in range(count):
            write_image(tmp_path / name / f"{k}.png", 10 * k, mode="L")
    return tmp_path


def walked(root: Path) -> Tree:
    return walk(root, transforms.endings(), lambda path: False)


def test_links_to_classes_to_links_and_to_files(tmp_path):
    folder(tmp_path / "src", "a", "b", "c", count=12)
    root = tmp_path / "data"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "src" / "a")
    (tmp_path / "hop").symlink_to(tmp_path / "src" / "b")
    (root / "b").symlink_to(tmp_path / "hop")
    (root / "c").mkdir()
    for file in (tmp_path / "src" / "c").iterdir():
        (root / "c" / file.name).symlink_to(file)
    d = data.load("folder", path=str(root))
    assert (d.class_names, len(d.train) + len(d.test)) == (("a", "b", "c"), 36)


def test_links_in_a_loop_end(tmp_path):
    root = folder(tmp_path / "data", "a", "b", count=12)
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")
    (root / "b" / "out").symlink_to(tmp_path)
    (root / "a" / "x.png").symlink_to(root / "a" / "y.png")
    (root / "a" / "y.png").symlink_to(root / "a" / "x.png")
    (root / "c").symlink_to(root / "gone")
    tree = walked(root)
    assert len(tree.images) == 24 and not tree.again
    said = ignored(tree)
    assert "3 link to a folder above" in said and "3 broken link (a/x.png, a/y.png and c)" in said


def test_a_file_that_is_found_twice_is_used_once(tmp_path):
    root = folder(tmp_path / "data", "a", "b", count=12)
    (root / "a" / "again").symlink_to(root / "a" / "deep")
    folder(root / "a", "deep")
    (root / "a" / "copy.png").symlink_to(root / "a" / "0.png")
    found = split(layout.arrange(root, walked(root)))
    assert sum(counts(found)) == 27 and not any(
        "again" in f.name or "copy" in f.name for f in (*found.train, *found.test)
    )
    assert found.dropped == ["4 images that a link shows again"]


@pytest.mark.parametrize(
    "link, target, what",
    [
        ("c", "a", "the classes a and c"),
        ("a/more", "b", "the classes b and a"),
        ("b/one.png", "a/0.png", "the classes a and b"),
    ],
)
def test_a_file_in_two_classes_is_refused(tmp_path, link, target, what):
    root = folder(tmp_path / "data", "a", "b", count=12)
    (root / link).symlink_to(root / target)
    with pytest.raises(UserError, match=f"are one file, by a link, in {what}"):
        data.load("folder", path=str(root))
    assert sum(map(len, data.load("folder", path=str(root), layout="flat")[1:3])) == 24


def test_a_file_in_both_splits_is_refused(tmp_path):
    root = folder(tmp_path / "data", "train")
    (root / "test").symlink_to(root / "train")
    with pytest.raises(UserError, match="in the training and the test split"):
        data.load("folder", path=str(root))


def test_train_may_be_a_link_to_a_folder_beside_it(tmp_path):
    root = folder(tmp_path / "data", "real", count=12)
    (root / "train").symlink_to(root / "real")
    found = split(layout.arrange(root, walked(root), "splits"))
    assert sum(counts(found)) == 12 and found.roots[0] == root / "train"


def test_many_links_across_do_not_multiply(tmp_path):
    root = folder(tmp_path / "data", *map(str, range(12)), count=1)
    for a in range(12):
        for b in range(12):
            (root / str(a) / f"to{b}").symlink_to(
                root / str(b)
            )  # 12! ways from the first to the last
    tree = walked(root)
    assert len(tree.images) == 12 and len(tree.again) == 132


# ---- folders and files that cannot be read, or are no images ----
def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    root = folder(tmp_path / "data", "a", "b", count=12)
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"the folder b cannot be read \(Permission denied\)"):
        data.load("folder", path=str(root))


def test_a_class_without_a_readable_image_is_refused(tmp_path):
    root = folder(tmp_path / "data", "a", "c", count=12)
    (root / "b").mkdir()
    (root / "b" / "0.png").write_text("no image")
    (root / "b" / "1.png").write_text("no image")
    with pytest.raises(UserError, match="no training image of class b is readable"):
        data.load("folder", path=str(root))


def test_what_is_not_used_is_counted_by_ending(tmp_path, caplog):
    root = folder(tmp_path / "data", "a", count=12)
    for k in range(60):
        (root / f"b{k % 2}").mkdir(exist_ok=True)
        (root / f"b{k % 2}" / f"{k}.xyz").write_text("")
    (root / "README").write_text("words")
    (root / "a" / ".hidden.png").write_text("")
    (root / "__MACOSX").mkdir()
    os.mkfifo(root / "a" / "pipe.png")
    with caplog.at_level("WARNING"):
        d = data.load("folder", path=str(root))
    assert d.class_names == ("a",)
    line = next(r.getMessage() for r in caplog.records if "not used" in r.getMessage())
    assert "60 .xyz" in line and "1 without an ending" in line and "1 special file" in line
    assert "b0/, which has no images (30 .xyz); b1/, which has no images (30 .xyz)" in line


ENDINGS = {
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".jp2": "JPEG2000",
    ".tga": "TGA",
    ".PNG": "PNG",
    "": "PNG",
    ".dib": "DIB",
    ".pbm": "PPM",
    ".avif": "AVIF",
    ".webp": "WEBP",
}


def test_endings_that_pillow_can_open(tmp_path):
    Image.init()
    written = {ending: form for ending, form in ENDINGS.items() if form in Image.SAVE}
    assert len(written) >= 7
    for ending, form in written.items():
        for k in range(3):
            path = tmp_path / f"class{ending}" / f"{k}{ending}"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (200, 10 * k, 0)).convert(
                "1" if ending == ".pbm" else "RGB"
            ).save(path, form)
    d = data.load("folder", path=str(tmp_path))
    assert d.num_classes == len(written) and len(d.train) + len(d.test) == 3 * len(written)


def test_captions_are_not_counted_and_are_found_above_a_wrapper(tmp_path, caplog):
    root = folder(tmp_path / "data", "train/pictures/a", "train/pictures/b", "test/pictures/a")
    for part in ("train", "test"):
        names = sorted(str(p.relative_to(root / part)) for p in (root / part).rglob("*.png"))
        lines = [f'{{"file_name": "{name}", "text": "{name[0]} thing"}}' for name in names]
        (root / part / "metadata.jsonl").write_text("\n".join(lines))
    with caplog.at_level("WARNING"):
        d = data.load("folder", path=str(root), captioned=True)
    assert len(d.train) == 6 and "metadata" not in caplog.text


def test_captions_that_are_missing_or_all_the_same(tmp_path, caplog):
    np.savez(
        tmp_path / "d.npz",
        images=np.random.default_rng(0).integers(0, 256, (10, 4, 4)).astype(np.uint8),
    )
    file = tmp_path / "d_captions.json"
    for bad in ('""', '"  "', "[]", '{"caption": ""}'):
        file.write_text(f"[{bad}{', ' + chr(34) + 'x' + chr(34)}" + ', "x"' * 8 + "]")
        with pytest.raises(
            UserError, match="1 images have no caption, (train|test) image 0 for one"
        ):
            data.load("npz", path=str(tmp_path / "d.npz"), captioned=True)
    file.write_text("[" + ", ".join(['"x"'] * 10) + "]")
    with caplog.at_level("WARNING"):
        d = data.load("npz", path=str(tmp_path / "d.npz"), captioned=True)
    assert len(d.train) == 9 and "all images have the same caption" in caplog.text


def test_names_that_are_not_utf8(tmp_path):
    for k in range(12):
        write_image(tmp_path / "data" / "a" / f"{k}.png", k, mode="L")
    odd = os.fsencode(tmp_path / "data") + b"/caf\xe9\n"
    os.mkdir(odd)
    for k in range(12):
        os.link(tmp_path / "data" / "a" / f"{k}.png", odd + b"/\xff%d.png" % k)
    d = data.load("folder", path=str(tmp_path / "data"))
    assert d.class_names == ("a", r"caf\udce9\n") and len(d.train) + len(d.test) == 24
    assert "\\udce9" in data.describe.line(d) and "\n" not in data.describe.line(d)
    data.describe.line(d).encode()  # every name can be written
    os.rename(odd, os.fsencode(tmp_path / "data") + b"/tr\xe9s")
    with pytest.raises(UserError, match=re.escape(r"tr\udce9s")) as error:
        data.load("folder", path=os.fsdecode(os.fsencode(tmp_path / "data") + b"/tr\xe9s/none"))
    str(error.value).encode()


# ---- values ----
@pytest.fixture
def ramp() -> np.ndarray:
    return np.linspace(0, 1, 256).reshape(16, 16)


STORED = {  # name: (type, scale, offset, the range to state)
    "unit floats": ("f4", 1, 0, (0, 1)),
    "signed floats": ("f4", 2, -1, (-1, 1)),
    "wide floats": ("f4", 65535, 0, (0, 65535)),
    "32 bits of 8": ("i4", 255, 0, (0, 255)),
    "16 bits of 8": ("u2", 255, 0, (0, 255)),
    "16 bits of 12": ("u2", 4095, 0, (0, 4095)),
}


@pytest.mark.parametrize("name", STORED)
def test_values_of_unknown_scale_are_refused_and_a_stated_range_is_used(tmp_path, ramp, name):
    kind, scale, offset, stated = STORED[name]
    for k in range(4):
        Image.fromarray((ramp * scale + offset).astype(kind)).save(tmp_path / f"{k}.tif")
    with pytest.raises(UserError, match=re.escape(f"value_range={stated}")) as error:
        data.load("folder", path=str(tmp_path))
    assert "\n" not in str(error.value)
    d = data.load("folder", path=str(tmp_path), value_range=stated)
    assert d.image_shape == (16, 16, 1)
    np.testing.assert_allclose(
        data.arrays(d.train)["image"][0, ..., 0], np.round(255 * ramp), atol=1
    )
    with pytest.raises(UserError, match=r"are outside of config.data.value_range=\(0.9, 0.91\)"):
        data.load("folder", path=str(tmp_path), value_range=(0.9, 0.91))


def test_sixteen_bits_that_are_used_need_no_range(tmp_path, ramp):
    for k in range(4):
        Image.fromarray((ramp * 65535).astype("u2")).save(tmp_path / f"{k}.png")
    d = data.load("folder", path=str(tmp_path))
    np.testing.assert_array_equal(data.arrays(d.train)["image"][0, ..., 0], np.round(255 * ramp))


def test_a_range_of_eight_bits(tmp_path, ramp):
    for k in range(4):
        Image.fromarray(np.round(ramp * 16).astype(np.uint8)).save(tmp_path / f"{k}.png")
    d = data.load("folder", path=str(tmp_path), value_range=(0, 16), channels=3)
    expected = np.round(np.round(ramp * 16) * 255 / 16)
    np.testing.assert_array_equal(data.arrays(d.train)["image"][0, ..., 1], expected)


@pytest.mark.parametrize("bad", [(1,), (0, 0), (0, float("nan")), (0, 1, 2)])
def test_ranges_that_are_none(tmp_path, bad):
    with pytest.raises(UserError, match="config.data.value_range=.* must be"):
        data.load("folder", path=str(tmp_path), value_range=bad)
    with pytest.raises(UserError, match="value_range=.* is not used by data.name=digits"):
        data.load("digits", value_range=(0, 1))


def test_floats_that_are_not_finite_are_unreadable_images(tmp_path, ramp):
    for k in range(4):
        Image.fromarray(np.where(k == 1, np.nan, ramp).astype("f4")).save(tmp_path / f"{k}.tif")
    with pytest.raises(
        UserError, match=r"limit_bad=0 unreadable.*1.tif \(it has values that are not finite\)"
    ):
        data.load("folder", path=str(tmp_path), value_range=(0, 1), limit_bad=0)


def test_an_npz_of_floats_with_a_range(tmp_path, ramp):
    np.savez(tmp_path / "d.npz", images=np.stack([ramp] * 4).astype("f4"))
    with pytest.raises(UserError, match=r"float32 values from 0 to 1, .*value_range=\(0, 1\)"):
        data.load("npz", path=str(tmp_path / "d.npz"))
    d = data.load("npz", path=str(tmp_path / "d.npz"), value_range=(0, 1))
    np.testing.assert_array_equal(data.arrays(d.train)["image"][0, ..., 0], np.round(255 * ramp))
    np.savez(tmp_path / "d.npz", images=np.full((4, 2, 2), np.nan))
    with pytest.raises(UserError, match="have no finite values"):
        data.load("npz", path=str(tmp_path / "d.npz"), value_range=(0, 1))


def test_a_split_that_is_nearly_constant_warns(tmp_path, caplog):
    image = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    for kind, scale in (("dark", 16), ("good", 1)):
        np.savez(tmp_path / f"{kind}.npz", images=image // scale)
    with caplog.at_level("WARNING"):
        data.load("npz", path=str(tmp_path / "good.npz"))
        assert not caplog.text
        data.load("npz", path=str(tmp_path / "dark.npz"))
    assert (
        "training and test images are nearly constant, with values from 0 to 15 of 255"
        in caplog.text
    )


# ---- labels ----
def save_labels(path, labels) -> str:
    np.savez(
        path,
        images=np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8),
        labels=labels,
    )
    return str(path)


@pytest.mark.parametrize(
    "labels, classes, warning",
    [
        (
            np.arange(40) % 3 + 1,
            4,
            "1 of 4 classes have no training image and cannot be learned: 0; are the labels numbered from 1",
        ),
        (
            np.arange(40) % 3 * 2,
            5,
            "2 of 5 classes have no training image and cannot be learned: 1, 3; labels count from 0",
        ),
        (np.arange(40) % 3, 3, ""),
        (np.r_[np.zeros(39), 1].astype(int), 2, ""),  # a class of one image is not held out
    ],
)
def test_labels_without_training_images_warn(tmp_path, caplog, labels, classes, warning):
    with caplog.at_level("WARNING"):
        d = data.load("npz", path=save_labels(tmp_path / "d.npz", labels))
    assert (
        d.num_classes == classes and warning in caplog.text and bool(warning) == bool(caplog.text)
    )


@pytest.mark.parametrize("labels", [[2_000_000_000, 5] * 20, [100, 200] * 20, [0, 2**62] * 20])
def test_ids_are_refused_before_they_are_named(tmp_path, labels):
    with pytest.raises(
        UserError, match="2 different labels, up to .*, look like ids; number the classes from 0"
    ):
        data.load("npz", path=save_labels(tmp_path / "d.npz", np.array(labels)))


def test_a_stated_number_of_classes_is_taken(tmp_path):
    d = data.load(
        "npz", path=save_labels(tmp_path / "d.npz", np.array([100, 200] * 20)), num_classes=1000
    )
    assert d.num_classes == 1000


@pytest.mark.parametrize(
    "labels, match",
    [
        (
            np.array(["a", "b"] * 20),
            r"'labels' is <U1 \(40,\); 40 integers.*np.unique\(labels, return_inverse=True\)",
        ),
        (np.zeros(40), r"'labels' is float64 \(40,\); 40 integers.*np.unique"),
        (np.zeros((40, 10), int), r"'labels' is int64 \(40, 10\); 40 integers"),
        (np.array([-1, 0] * 20), "has label -1, outside 0..0"),
        (np.arange(40), "each of the 40 classes has one image, so none can be held out"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, match):
    with pytest.raises(UserError, match=match):
        data.load("npz", path=save_labels(tmp_path / "d.npz", labels))


# ---- the line ----
def test_the_line_of_a_data_set(tmp_path):
    for k, name in enumerate(["10", "9", "1", "2", "3", "4"]):
        for i in range(4 + k):
            write_image(tmp_path / "set" / name / f"{i}.png", 40 * k, mode="L")
    d = data.load("folder", path=str(tmp_path))
    rows = np.bincount(data.arrays(d.train)["label"])
    named = ", ".join(f"{name} {count}" for name, count in zip(("1", "2", "3", "4", "9"), rows))
    total = f"{len(d.train)} training and {len(d.test)} test image{'s' * (len(d.test) > 1)}"
    rule = "a tenth of set/ is held out by file name"
    assert (
        data.describe.line(d)
        == f"data: folder: {total}, 4x6, 1 channel; 6 classes: {named}, ...; {rule}"
    )


def test_the_line_of_points_and_of_a_set_without_labels():
    line = "data: checkerboard: 50,000 training and 10,000 test points, of 2 numbers; no classes; drawn independently"
    assert data.describe.line(data.load("checkerboard")) == line


def test_images_of_splits_keep_their_values(tmp_path):
    for k in range(3):
        write_image(tmp_path / "Training" / "a" / f"{k}.png", k, mode="L")
        write_image(tmp_path / "DEV" / "a" / f"{k}.png", 10 + k, mode="L")
    d = data.load("folder", path=str(tmp_path))
    assert values(d.train) == [0, 1, 2] and values(d.test) == [10, 11, 12]
