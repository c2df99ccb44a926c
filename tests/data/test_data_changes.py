"""Data that changed under a run are refused by name before anything is written, by every command
that reads them.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import digits
from diffusion_jax import data
from diffusion_jax.assembly import same_run, workdir
from diffusion_jax.core.errors import UserError
from tests import commands
from tests.data.sets import write_image

ROOT = Path(__file__).parents[2]


def write_class(folder: Path, name: str, value: int, count: int = 12, size=(8, 8)) -> None:
    for k in range(count):
        write_image(folder / name / f"{k}.png", value + k, mode="L", size=size)


@pytest.fixture
def run(tmp_path):
    """(config, workdir) of a run on two classes that has a checkpoint."""
    write_class(tmp_path / "data", "cat", 0)
    write_class(tmp_path / "data", "dog", 200)
    config = digits.get_config()
    config.data.update(name="folder", path=str(tmp_path / "data"))
    workdir.prepare(
        tmp_path / "run", config, workdir.dataset(config, tmp_path / "run", resumes=True)
    )
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    return config, tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_class(folder):
    write_class(folder, "cow", 90)


def rename_class(folder):
    (folder / "cat").rename(folder / "zebra")


def remove_class(folder):
    shutil.rmtree(folder / "cat")


def resize(folder):
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)
        write_class(folder, name, 0, size=(16, 8))


def remove_images(folder):
    for k in range(2, 12):
        (folder / "dog" / f"{k}.png").unlink()


def add_images(folder):
    write_class(folder, "dog", 0, count=40)


def split(folder):
    write_class(folder / "train", "cat", 0)
    write_class(folder / "test", "cat", 0)
    for part in ("train", "test"):
        (folder / "dog").rename(folder / part / "dog") if part == "train" else write_class(
            folder / part, "dog", 0
        )
    shutil.rmtree(folder / "cat")


CHANGES = {
    add_class: "class cow is new",
    rename_class: "class zebra is new; class cat is gone",
    remove_class: "class cat is gone",
    resize: r"examples are \(8, 16, 1\), and were \(8, 8, 1\)",
    remove_images: r"\d+ train images, and there were 20",
    add_images: r"\d+ train images, and there were 20",
    split: "24 train images, and there were 20; 24 test images, and there were 4",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_changed_is_named_and_nothing_is_touched(run, change):
    config, root = run
    before = contents(root)
    change(Path(config.data.path))
    for read in (
        lambda: workdir.dataset(config, root, resumes=True),
        lambda: workdir.dataset(config, root),
        lambda: workdir.images(config, root),
        lambda: workdir.prepare(root, config, data.load("folder", path=config.data.path)),
    ):
        with pytest.raises(
            UserError,
            match=f"the data are not those that its model learned from: .*{CHANGES[change]}",
        ):
            read()
    assert contents(root) == before


def test_the_command_refuses_them_before_it_trains(run):
    config, root = run
    before = contents(root)
    rename_class(Path(config.data.path))
    done = commands.run(
        "train",
        "--config=configs/digits.py:vp",
        "--config.data.name=folder",
        f"--config.data.path={config.data.path}",
        f"--workdir={root}",
    )
    assert (
        done.returncode == 2
        and "class zebra is new; class cat is gone" in done.stderr
        and contents(root) == before
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("data: folder: 2")]
    assert (
        len(lines) == 1
        and "2 classes: dog 1" in lines[0]
        and "a tenth is held out by file name" in lines[0]
    )


def test_data_that_did_not_change_or_moved_are_taken(run, tmp_path):
    config, root = run
    assert workdir.dataset(config, root, resumes=True).class_names == ("cat", "dog")
    shutil.move(config.data.path, tmp_path / "elsewhere")
    config.data.path = str(tmp_path / "elsewhere")
    workdir.prepare(root, config, workdir.dataset(config, root, resumes=True))


def test_other_images_of_the_same_classes_may_be_named_to_judge_by_and_not_to_train_on(
    run, tmp_path
):
    config, root = run
    write_class(tmp_path / "more", "cat", 0, count=40)
    write_class(tmp_path / "more", "dog", 0, count=40)
    config.data.path = str(tmp_path / "more")
    assert len(workdir.dataset(config, root).train) > 60
    with pytest.raises(UserError, match="train images, and there were 20"):
        workdir.dataset(config, root, resumes=True)


def test_a_run_in_text_order_keeps_it(tmp_path):
    for k in range(12):
        write_class(tmp_path / "data", str(k), 20 * k, count=4)
    config = digits.get_config()
    config.data.update(name="folder", path=str(tmp_path / "data"))
    root, natural = tmp_path / "run", workdir.dataset(config, None)
    assert natural.class_names == tuple(map(str, range(12)))
    workdir.prepare(root, config, natural)
    (root / "checkpoints" / "4").mkdir(parents=True)
    about = json.loads((root / "data.json").read_text())
    about["class_names"] = sorted(
        about["class_names"]
    )  # '0', '1', '10', '11', '2', ... as earlier versions had them
    for key in ("train_size", "test_size"):
        del about[key]
    (root / "data.json").write_text(json.dumps(about))
    kept = workdir.dataset(config, root, resumes=True)
    assert kept.class_names == tuple(about["class_names"])
    for before, now in ((natural.train, kept.train), (natural.test, kept.test)):
        rows = np.arange(len(now))
        old, new = before.rows(rows), now.rows(rows)
        np.testing.assert_array_equal(old["image"], new["image"])
        assert [natural.class_names[i] for i in old["label"]] == [
            kept.class_names[i] for i in new["label"]
        ]
        assert now[0]["label"] == new["label"][0] and (now.labels == new["label"]).all()
    workdir.prepare(root, config, kept)
    assert json.loads((root / "data.json").read_text())["class_names"] == about["class_names"]
    about["class_names"][:2] = about["class_names"][1::-1]
    (root / "data.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="the classes are in another order"):
        workdir.dataset(config, root, resumes=True)


@pytest.mark.parametrize(
    "content, match",
    [
        ("", "is not valid JSON"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ("{}", "lacks image_shape"),
        (
            '{"image_shape": [8, 8, 1], "num_classes": 2, "class_names": ["cat"]}',
            "1 class_names for num_classes=2",
        ),
        (
            '{"image_shape": [8, 8, -1], "num_classes": 2, "class_names": []}',
            r"image_shape\[2\] is -1",
        ),
        ('{"image_shape": [8, 8, 1], "num_classes": "2", "class_names": []}', "num_classes is"),
        (
            '{"image_shape": [8, 8, 1], "num_classes": 2, "class_names": ["cat", "dog"], '
            '"train_size": "20"}',
            "train_size is",
        ),
        (
            '{"image_shape": [8, 8, 1], "num_classes": 3, "class_names": []}',
            "2 classes, and there were 3",
        ),
        (
            '{"image_shape": [8, 8, 1], "num_classes": 2, "class_names": ["dog", "cat"]}',
            "the classes are in another order",
        ),
        (None, "cannot read"),
    ],
)
def test_an_edited_data_json(run, content, match):
    config, root = run
    (root / "data.json").unlink()
    if content is not None:
        (root / "data.json").write_text(content)
    with pytest.raises(UserError, match=match) as error:
        workdir.dataset(config, root, resumes=True)
    assert "\n" not in str(error.value)


def test_latents_that_were_encoded_otherwise(run):
    config, root = run
    loaded = workdir.dataset(config, root)
    encoded = data.latents.Encoded("hash", (8, 8, 1), "folder", 2, ("cat", "dog"), (0.1,), (2.0,))
    about = json.loads((root / "data.json").read_text()) | {
        "encoded": json.loads(json.dumps(encoded._asdict()))
    }
    (root / "data.json").write_text(json.dumps(about))
    assert same_run.same_data(root, about, loaded._replace(encoded=encoded), sizes=True)
    with pytest.raises(UserError, match="the latents were encoded otherwise"):
        same_run.same_data(
            root, about, loaded._replace(encoded=encoded._replace(scale=(2.5,))), sizes=True
        )


def test_names_made_up_for_imported_weights_are_not_compared(run):
    config, root = run
    about = json.loads((root / "data.json").read_text())
    about = {"image_shape": about["image_shape"], "num_classes": 2, "class_names": ["0", "1"]}
    (root / "data.json").write_text(json.dumps(about))
    assert workdir.dataset(config, root).class_names == ("cat", "dog")


def test_every_command_reads_the_data_of_a_run_by_the_function_that_compares_them():
    plain = {
        "benchmark",
        "compare_families",
    }  # which have no run before, or train each of theirs by experiments.train
    commands_text = {path.stem: path.read_text() for path in (ROOT / "experiments").glob("*.py")}
    assert {
        name for name, text in commands_text.items() if re.search(r"experiment\.dataset\(", text)
    } <= plain
    assert not [
        name
        for name, text in commands_text.items()
        if re.search(r"folder\.(images|dataset)\(config\)", text)
    ]
