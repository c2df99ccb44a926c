"""Links, unreadable folders, endings and captions below a folder of images."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import layout, transforms
from diffusion_jax.data.tree import Tree, ignored, walk
from tests.data.folders import counts, folder, split
from tests.data.sets import write_image


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


def test_train_may_be_a_link_to_a_folder_next_to_it(tmp_path):
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
    for name in ("b0", "b1"):
        assert f"{name}/, which holds nothing that is read (30 .xyz)" in line


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
            UserError, match="1 images have no caption, such as (train|test) image 0"
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
