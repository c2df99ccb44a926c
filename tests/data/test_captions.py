"""Data with captions: how they are read, kept and drawn; and captioned digits."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import captions, digits_captions
from diffusion_jax.data.sources import Arrays
from diffusion_jax.models import text
from tests.models.captioned import read


def captioned(n: int = 12) -> captions.CaptionedSource:
    """Image i is filled with i; its captions are 'i', 'i again', and of odd ones 'i once more'."""
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1)).copy()
    own = [(f"{i}", f"{i} again", f"{i} once more")[: 2 + i % 2] for i in range(n)]
    every, (numbers,) = captions.numbered(own)
    return captions.CaptionedSource(
        Arrays(image, None, numbers), {"bytes": text.bytes(16).encode(every)["bytes"]}
    )


def test_words_stay_with_their_picture_and_change_with_the_epoch():
    source, size = captioned(), 12
    batch = data.batches(source, batch_size=4, seed=5)
    assert set(batch(0)) == {"image", "bytes"}
    seen = {}
    for number in range(90):  # 30 epochs
        b = batch(number)
        which = np.round((b["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        for i, words in zip(which, read(b)):
            assert words.split()[0] == str(i)
            seen.setdefault(i, []).append(words)
    assert all(len(set(words)) == 2 + i % 2 for i, words in seen.items()) and set(
        map(len, seen.values())
    ) == {30}
    again, parts = (
        data.batches(source, batch_size=4, seed=5),
        [
            data.batches(source, batch_size=4, seed=5, process_index=p, process_count=2)
            for p in range(2)
        ],
    )
    assert (
        read(again(77)) == read(batch(77)) == read(parts[0](77)) + read(parts[1](77))
    )  # resumed, and on two processes
    held_out = [words for b in data.sequential(source, 4) for words in read(b)]
    assert held_out == [str(i) for i in range(size)]


def test_encoded_once_and_kept(tmp_path):
    calls = []

    def encode(some):
        calls.append(len(some))
        return {"tokens": np.array([[len(c)] * 3 for c in some], np.float16)}

    options = dict(
        like={"tokens": np.zeros(3, np.float16)}, kept="an encoder", cache_dir=str(tmp_path)
    )
    every = ["x" * i for i in range(600)]
    first = captions.tables(every, encode, **options)
    assert sum(calls) == 600 and max(calls) <= 256
    second = captions.tables(every, encode, **options)
    assert sum(calls) == 600
    third = captions.tables(every[:-1], encode, **options)
    rows = np.array([5, 599, 5])
    np.testing.assert_array_equal(first["tokens"][rows], second["tokens"][rows])
    assert first["tokens"][rows][:, 0].tolist() == rows.tolist() and len(third["tokens"][:]) == 599
    sent = pickle.dumps(second["tokens"])  # to a data worker: the path, not the array
    assert len(sent) < 500 and pickle.loads(sent)[rows].tolist() == second["tokens"][rows].tolist()


def folder_of(root: Path, count: int = 12) -> None:
    """Image i is filled with 20 i."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(root / f"{i}.png")


def spoken(d: data.Dataset) -> dict[int, list[str]]:
    """The captions by the number of the image."""
    rows = [row for source in (d.train, d.test) for row in (source[i] for i in range(len(source)))]
    return {
        int(row["image"][0, 0, 0]) // 20: [d.captions[i] for i in row["caption"] if i >= 0]
        for row in rows
    }


@pytest.mark.parametrize("lazy", [False, True])
def test_a_folder_with_captions(tmp_path, monkeypatch, caplog, lazy):
    folder_of(tmp_path)
    monkeypatch.setattr("diffusion_jax.data.folder.held_in_memory", lambda *args: not lazy)
    lines = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(6)]
    lines[2]["text"] = ["two", "a couple"]
    lines.append({"file_name": "gone.png", "text": "nothing"})
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(map(json.dumps, lines)), encoding="utf-8-sig"
    )  # as some editors save
    for i in range(6, 12):
        (tmp_path / f"{i}.txt").write_text(f"picture {i}\n\n its double \n")
    found = spoken(data.load("folder", path=str(tmp_path), captioned=True))
    assert found == {i: [f"picture {i}"] for i in range(6)} | {2: ["two", "a couple"]} | {
        i: [f"picture {i}", "its double"] for i in range(6, 12)
    }
    assert (
        "1 lines name images that are not in the set" in caplog.text and "gone.png" in caplog.text
    )
    assert "caption" not in data.load("folder", path=str(tmp_path)).train[0]


def test_a_folder_whose_captions_are_broken(tmp_path):
    for split in ("train", "test"):
        folder_of(tmp_path / split, 3)
        (tmp_path / split / "0.txt").write_text("nought")
    with pytest.raises(
        UserError, match="2 of 3 images have no caption, such as 1.png; write it to 1.txt, or"
    ):
        data.load("folder", path=str(tmp_path), captioned=True)
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "x"}\n{"file_name": 3'
    )
    with pytest.raises(UserError, match="metadata.jsonl, line 2: a JSON object"):
        data.load("folder", path=str(tmp_path), captioned=True)
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "x"}\n{"file_name": "0.png", "text": "y"}'
    )
    with pytest.raises(
        UserError, match="line 2.*0.png has a line already; of several captions text is a list"
    ):
        data.load("folder", path=str(tmp_path), captioned=True)
    (tmp_path / "train" / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        data.load("folder", path=str(tmp_path), captioned=True)


def test_an_npz_with_captions(tmp_path):
    images = np.broadcast_to(20 * np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 4, 4, 1))
    np.savez(tmp_path / "set.npz", images=images)
    file = tmp_path / "set_captions.json"
    file.write_text(
        json.dumps(
            [{"caption": f"picture {i}", "style": "plain"} for i in range(11)] + [["eleven", "XI"]]
        )
    )

    def load(**how):
        return data.load("npz", path=str(tmp_path / "set.npz"), captioned=True, **how)

    expected = {i: [f"picture {i}"] for i in range(11)} | {11: ["eleven", "XI"]}
    assert spoken(load()) == expected == spoken(load(image_size=2, channels=3))
    other = tmp_path / "other.json"
    broken = [
        (["x"], "1 captions for 12 images"),
        ([3] * 12, "a JSON list of captions"),
        ([{"text": "x"}] * 12, "'caption'"),
    ]
    for bad, message in broken:
        other.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=message):
            load(captions=str(other))
    with pytest.raises(UserError, match="data.captions=nowhere.json is not a file"):
        load(captions="nowhere.json")


def test_sets_without_captions_say_so():
    with pytest.raises(UserError, match="data.name=digits has no captions; use digits_captions"):
        data.load("digits", captioned=True)


@pytest.mark.parametrize("kind", ["text", "list", "dicts"])
def test_captions_of_a_prepared_tfds_set(tmp_path, kind):

    words = tfds.features.Text()
    several = tfds.features.Sequence
    feature = {
        "text": words,
        "list": several(words),
        "dicts": several({"id": np.int64, "text": words}),
    }[kind]
    key = "caption" if kind == "text" else "captions"

    def said(i):
        return [f"{i}"] if kind == "text" else [f"{i}", f"{i} too"][: 1 + i % 2]

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": image, key: feature})
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(range(6)),
                "test": self._generate_examples(range(6, 8)),
            }

        def _generate_examples(self, numbers):
            for i in numbers:
                texts = {
                    "text": said(i)[0],
                    "list": said(i),
                    "dicts": [{"id": 0, "text": t} for t in said(i)],
                }[kind]
                yield i, {"image": np.full((2, 2, 1), 20 * i, np.uint8), key: texts}

    Writer.name = "spoken"
    Writer(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    assert spoken(data.load("spoken", data_dir=str(tmp_path), captioned=True)) == {
        i: said(i) for i in range(8)
    }


def test_lean_is_the_shear_and_ink_the_mass():
    y, x = np.indices((41, 41)) - 20
    bars = [
        (np.abs(x + shear * y) <= width) & (np.abs(y) <= 15)
        for shear, width in ((0.5, 1.5), (-0.25, 1.5), (0.0, 4.5))
    ]
    images = 255 * np.stack(bars).astype(np.uint8)[..., None]
    np.testing.assert_allclose(
        digits_captions.lean(images), [0.5, -0.25, 0.0], atol=0.02
    )  # to the right at the top: positive
    np.testing.assert_allclose(digits_captions.ink(images)[2], 9 * 31 / 41**2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> data.Dataset:
    return data.load(
        "digits_captions", data_dir=str(tmp_path_factory.mktemp("tfds")), captioned=True
    )


def attributes(caption: str) -> tuple[str | None, str | None]:
    """(weight, slant) that a caption speaks of."""
    words = set(re.findall(r"[a-z-]+", caption))

    def found(names):
        return next((n for n in names if words & set(digits_captions.WORDS[n])), None)

    return found(digits_captions.WEIGHTS), found(digits_captions.SLANTS)


def test_captions_say_what_is_in_the_image(digits):
    """The digit is right, the bold ones of a digit have more ink than the thin ones, and leaning is
    ordered too.
    """
    columns = digits.train.columns
    first = [digits.captions[i] for i in columns["caption"][:, 0]]
    said = np.array([attributes(caption) for caption in first])
    for row, label in zip(columns["caption"], columns["label"]):
        for caption in (digits.captions[i] for i in row if i >= 0):
            assert {str(label), digits_captions.NAMES[label]} & set(re.findall(r"\w+", caption))
    for column, (name, order) in enumerate(
        [("ink", digits_captions.WEIGHTS), ("lean", digits_captions.SLANTS)]
    ):
        values = getattr(digits_captions, name)(columns["image"])
        for digit in range(10):
            of = [values[(columns["label"] == digit) & (said[:, column] == name)] for name in order]
            assert (
                of[0].max() <= of[1].min()
                and of[1].max() <= of[2].min()
                and min(map(len, of)) >= 25
            )


def test_what_is_held_out_is_never_trained_on(digits):
    prompts, labels = digits_captions.held_out_prompts(200)
    trained = {digits.captions[i] for row in digits.train.columns["caption"] for i in row if i >= 0}
    assert not trained & set(prompts) and set(prompts) <= set(
        digits.captions
    )  # the test split has them
    assert labels.tolist() == [*range(10)] * 20
    for prompt, label in zip(prompts, labels):
        assert attributes(prompt) == digits_captions.HELD_OUT[label]
        assert {str(label), digits_captions.NAMES[label]} & set(re.findall(r"\w+", prompt))
    assert len(digits.test) == 297 and 1250 < len(digits.train) < 1450
    columns = digits.train.columns
    every = {
        (int(label), *attributes(digits.captions[i]))
        for label, row in zip(columns["label"], columns["caption"])
        for i in row
        if i >= 0
    }
    for label in range(
        10
    ):  # each half of what is held out is seen, and so are "a thin 3" and "a bold seven"
        weight, slant = digits_captions.HELD_OUT[label]
        assert {
            (label, weight, None),
            (label, None, slant),
            (label, "bold", None),
            (label, "thin", None),
        } <= every
