"""Tables as data sets: what their columns become, and what is refused."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from diffusion_jax import data
from diffusion_jax.assembly import config_schema, data_record
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import columns, describe, table, table_files
from diffusion_jax.data.columns import CATEGORY, NUMBER, Column

COLORS = np.array(["red", "blue", "green"])


def load(path, normalization="standard", image_size=0, **roles):
    how = {"normalization": normalization, "image_size": image_size}
    return data.load("table", path=path, roles=table.Roles(**roles), **how)


def drawn(count=40):
    """Columns of every kind; the third number is 0 in half of the rows."""
    rng = np.random.default_rng(0)
    return {
        "age": rng.integers(18, 80, count).tolist(),
        "height": rng.normal(170, 10, count).round(1).tolist(),
        "rain": (rng.exponential(size=count) * (np.arange(count) % 2)).tolist(),
        "color": COLORS[rng.integers(0, 3, count)].tolist(),
        "code": (100 * rng.integers(1, 3, count)).tolist(),
        "kind": np.array(["a", "b"])[np.arange(count) % 2].tolist(),
    }


def saved(folder, cells, name="t.csv"):
    lines = [cells.keys(), *zip(*cells.values())]
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    (folder / name).write_text(text)
    return str(folder / name)


def test_columns_become_channels_and_return_as_they_were(tmp_path):
    """Whole numbers, decimals, full precision and categories; the label is no channel."""
    cells = drawn()
    path = saved(tmp_path, cells)
    loaded = load(path, label="kind", categories=("code",))
    assert loaded.image_shape == (3 + 3 + 2,) and loaded.class_names == ("a", "b")
    known = loaded.normalization
    assert [c.decimals for c in known.columns[:3]] == [0, 1, None]
    assert known.columns[4].categories == ("100", "200")
    assert columns.decimals(np.array([8500.0, 200, 0])) == -2
    assert len(loaded.train) == 36 and len(loaded.test) == 4
    written = set()
    for split in (loaded.train, loaded.test):
        x = data.arrays(split)
        np.testing.assert_array_equal(known.possible(x["image"]), x["image"])
        head, *lines = columns.text(known.columns, known.values(x["image"]), x["label"])
        assert head == ",".join(cells)
        written |= {tuple(line.split(",")) for line in lines}
    shown = cells | {"rain": [format(cell, ".4f") for cell in cells["rain"]]}
    rounded = {(*row[:2], format(float(row[2]), ".4f"), *row[3:]) for row in written}
    assert rounded == {tuple(map(str, row)) for row in zip(*shown.values())}
    x = data.arrays(loaded.train)["image"]
    np.testing.assert_allclose([x.mean(0), x.std(0)], [[0] * 8, [1] * 8], atol=1e-5)


@pytest.mark.parametrize("rule", ["standard", "range", "quantile"])
def test_every_normalization_is_recorded_and_undone(rule, tmp_path):
    loaded = load(saved(tmp_path, drawn()), normalization=rule)
    about = json.loads(json.dumps(data_record.description(loaded)))
    assert data_record.normalization(about) == loaded.normalization
    x = data.arrays(loaded.train)["image"]
    assert x.dtype == np.float32 and len(np.unique(x[:, 3:6])) <= 6
    np.testing.assert_allclose(loaded.normalization.values(x), loaded.train.values, atol=1e-5)
    if rule == "range":
        np.testing.assert_allclose([x.min(0), x.max(0)], [[-1] * 9, [1] * 9], atol=1e-6)


def test_normal_scores_are_normal_and_keep_the_law_of_the_column():
    """Also where half of a column is one value, whose score is that of the middle of its levels:
    the mean is then (2 phi(0) - Phi^-1(3/4)) / 2. Nothing leaves the range of the training split.
    """
    cells = np.append(np.random.default_rng(0).exponential(size=2000), np.zeros(2000))
    known = (Column("rain", NUMBER, knots=columns.quantiles(cells)),)
    x = columns.scores(known, cells[:, None])
    assert len(known[0].knots) == columns.KNOTS
    np.testing.assert_allclose(x.mean(), (0.79788 - 0.67449) / 2, atol=0.003)
    z = np.random.default_rng(1).standard_normal((4000, 1))
    made = columns.cells(known, z)
    assert 0.47 < (made == 0).mean() < 0.53 and made.max() <= cells.max()
    np.testing.assert_allclose(np.quantile(made, 0.9), np.quantile(cells, 0.9), rtol=0.1)
    np.testing.assert_allclose(columns.cells(known, x)[:, 0], cells, atol=1e-9)


def test_categories_are_the_largest_channel_and_whole_numbers_are_rounded():
    known = (Column("n", NUMBER, decimals=0), Column("c", CATEGORY, ("a", "b,c")))
    found = columns.cells(known, np.array([[2.6, 0.2, 0.1], [-0.4, -3.0, 0.4]]))
    np.testing.assert_array_equal(found, [[3, 1, 0], [0, 0, 1]])
    assert columns.text(known, found) == ["n,c", "3,a", '0,"b,c"']
    assert columns.names(known) == ["n", "c=a", "c=b,c"]


def test_a_label_that_is_no_class_is_an_empty_cell():
    known = (Column("c", "label", ("a", "b")), Column("n", NUMBER, decimals=1))
    assert columns.text(known, np.ones((2, 1)), np.array([1, 2])) == ["c,n", "b,1.0", ",1.0"]
    assert columns.text(known, np.ones((1, 1))) == ["n", "1.0"]


def test_parquet_is_read_like_csv_and_a_second_file_is_the_test_split(tmp_path):
    cells = drawn()
    one = load(saved(tmp_path, cells))
    known = pa.table(cells | {"color": pa.array(cells["color"]).dictionary_encode()})
    known = known.append_column("__index_level_0__", pa.array(range(40)))  # as pandas stores it
    pa.parquet.write_table(known, tmp_path / "T.PARQUET")
    other = load(str(tmp_path / "T.PARQUET"))
    assert other.normalization == one.normalization
    np.testing.assert_array_equal(other.train.values, one.train.values)
    saved(tmp_path, {name: own[:5] for name, own in cells.items()}, "t_test.csv")
    split = load(str(tmp_path / "t.csv"))
    assert (len(split.train), len(split.test)) == (40, 5) and split.rule == "split by its files"


def test_a_category_is_never_held_out_whole(tmp_path):
    cells = drawn() | {"rare": [f"r{i}" if i < 9 else "usual" for i in range(40)]}
    loaded = load(saved(tmp_path, cells))
    rare = loaded.train.values[:, -10:].sum(0)
    assert len(loaded.train) + len(loaded.test) == 40 and rare.min() >= 1


def test_the_columns_are_listed_at_the_start(tmp_path, capsys):
    loaded = load(saved(tmp_path, drawn()), label="kind", exclude=("rain",))
    describe.announce(loaded)
    said = capsys.readouterr().err
    assert (
        "data: table: 36 training and 4 test rows, of 4 columns as 6 numbers; 2 classes: a " in said
    )
    assert "age (whole number 18 to 7" in said and "color (category: blue, green, red)" in said
    assert "kind (label: a, b)" in said and "rain (" not in said


def test_warnings_name_the_column(tmp_path, caplog):
    cells = drawn() | {"row": list(range(40)), "one": [5] * 40, "same": ["x"] * 40}
    load(saved(tmp_path, cells))
    for words in ("'row' counts the rows", "channel one is constant", "channel same=x is constant"):
        assert words in caplog.text
    load(saved(tmp_path, cells | {"20.5": cells["age"]}))
    assert "'20.5' has a number as its name; is the first row a row of data?" in caplog.text


def test_overrides_of_columns_are_quoted_for_the_shell():
    rule = config_schema.rule("data.exclude", ())
    for names in (("mass (g)",), ("id", "mass (g)", "t [C]"), ("a, b", "it's"), ("(x)", "y")):
        (typed,) = shlex.split(table_files.option("exclude", *names))
        assert rule.read(typed.partition("=")[2]) == names


CELLS = drawn()
MISSING = CELLS | {"age": ["", *CELLS["age"][1:-1], "NA"]}
MIXED = CELLS | {"age": ["young", *CELLS["age"][1:]]}
DATES = CELLS | {"day": ["2026-11-27"] * 40}


@pytest.mark.parametrize(
    "cells, options, words",
    [
        (MISSING, {}, ["'age' has 2 missing values (row 1", "config.data.exclude=age"]),
        (
            CELLS | {"color": [*CELLS["color"][:-1], ""]},
            {},
            ["'color' has 1 missing value (row 40"],
        ),
        (CELLS | {"none": [""] * 40}, {}, ["'none' is empty", "config.data.exclude=none"]),
        (CELLS | {"age": ["inf", *CELLS["age"][1:]]}, {}, ["'age' has inf in row 1", "finite"]),
        (MIXED, {}, ["'young' in row 1 is no number, and 39 of 40", "config.data.categories=age"]),
        (DATES, {}, ["'day' is of type date32", "config.data.exclude=day"]),
        (CELLS | {"id": [f"p{i}" for i in range(40)]}, {}, ["'id' has 40 different", "exclude=id"]),
        (CELLS, dict(label="height"), ["'height' has 3", "measurements, not categories"]),
        (
            MISSING,
            dict(exclude=("rain",)),
            ["leave the column out: --config.data.exclude=rain,age"],
        ),
        (CELLS | {"": CELLS["age"]}, {}, ["column 7 has no name"]),
        (CELLS, dict(label="sort"), ["config.data.label 'sort'", "kind"]),
        (CELLS, dict(exclude=("hight",)), ["config.data.exclude 'hight'; did you mean 'height'"]),
        (CELLS, dict(label="kind", exclude=("kind",)), ["leaves out 'kind'", "take it out"]),
        (CELLS, dict(exclude=tuple(CELLS)[:5], label="kind"), ["no column besides the label"]),
        (CELLS, dict(normalization="unit"), ["'unit'", "quantile"]),
        (CELLS, dict(image_size=8), ["config.data.image_size is not used by data.name=table"]),
        (CELLS, dict(exclude=tuple(CELLS)), ["no column besides the label"]),
        (
            CELLS | {"color": ["x" * 9999] * 40},
            {},
            ["'color' has a text of 9,999", "at most 1,000"],
        ),
        (CELLS | {"rain": [f"{i}e200" for i in range(40)]}, {}, ["channel rain", "3.9e+201"]),
        (CELLS | {"rain": [f"{i}e-200" for i in range(40)]}, {}, ["channel rain", "other units"]),
        (
            CELLS | {"rain": [f"{i}e200" for i in range(40)]},
            dict(normalization="quantile"),
            ["channel rain"],
        ),
        ({name: own[:1] for name, own in CELLS.items()}, {}, ["1 rows below its head"]),
    ],
)
def test_what_is_no_such_table_is_refused_in_one_line(cells, options, words, tmp_path):
    with pytest.raises(UserError) as error:
        load(saved(tmp_path, cells), **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    "change, words",
    [
        ({"color": ["violet"] * 40}, ["'color' has 'violet' in test row 1", "(40)"]),
        ({"kind": ["c"] * 40}, ["'kind' has 'c' in test row 1"]),
        ({"age": ["old"] * 40}, ["'age' is of numbers in the training rows and not in the test"]),
        ({"more": ["x"] * 40}, ["t_test.csv has other columns (more differs)"]),
        ({"age": [""] + CELLS["age"][1:]}, ["t_test.csv: column 'age' has 1 missing value"]),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused_in_one_line(change, words, tmp_path):
    path = saved(tmp_path, CELLS)
    saved(tmp_path, CELLS | change, "t_test.csv")
    with pytest.raises(UserError) as error:
        load(path, label="kind")
    for word in [*words, "data.path="]:
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "Empty CSV"),
        (b"a,b\n1\n", "Expected 2 columns"),
        (b"a,a\n1,2\n3,4\n", "2 columns are called 'a'"),
        (b"\xff\xfe,b\n1,2\n", "UTF-8"),
        (b"a,b\nr\xe9d,2\nr\xe9d,3\n", "'a' has bytes that are no text in UTF-8"),
    ],
)
def test_damaged_files_are_one_line(content, words, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load(str(tmp_path / "t.csv"))
    assert "\n" not in str(error.value)
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + content)
    with pytest.raises(UserError, match="cannot be read as a table"):
        load(str(tmp_path / "t.parquet"))
    with pytest.raises(UserError, match="must be a .csv, .tsv or .parquet file"):
        load(str(tmp_path / "t.txt"))


@pytest.mark.parametrize("name", ["age", "b, c", "f(x)", "it's", 'a "b"', "2019", "price ($)"])
def test_what_a_message_says_to_type_names_the_column(name):
    """Also a name with commas, brackets or quotation marks."""
    (typed,) = shlex.split(table_files.option("exclude", name))
    key, _, value = typed.removeprefix("--config.").partition("=")
    assert config_schema.read(key, value) == (name,)
    assert config_schema.read(key, "(a,)") == ("a",) and config_schema.read(key, "f(x)") == (
        "f(x)",
    )


def test_keys_of_tables_are_refused_for_other_data():
    with pytest.raises(UserError, match="data.label=x is not used by data.name=digits, only by"):
        data.load("digits", roles=table.Roles("x"))
    assert table.columns_of(data.load("digits").train) == ()


def test_a_damaged_record_of_columns_is_one_line(tmp_path):
    about = data_record.description(load(saved(tmp_path, drawn())))
    about["normalization"]["columns"].pop()
    with pytest.raises(UserError, match=r"and what it is of have \[7, 9\] channels"):
        data_record.normalization(about)
