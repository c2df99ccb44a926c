"""A data set in one line."""

from __future__ import annotations

import numpy as np

from diffusion_jax import data
from tests.data.sets import values, write_image


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
    line = (
        "data: checkerboard: 50,000 training and 10,000 test points, of 2 numbers; no classes; "
        "drawn independently"
    )
    assert data.describe.line(data.load("checkerboard")) == line


def test_images_of_splits_keep_their_values(tmp_path):
    for k in range(3):
        write_image(tmp_path / "Training" / "a" / f"{k}.png", k, mode="L")
        write_image(tmp_path / "DEV" / "a" / f"{k}.png", 10 + k, mode="L")
    d = data.load("folder", path=str(tmp_path))
    assert values(d.train) == [0, 1, 2] and values(d.test) == [10, 11, 12]
