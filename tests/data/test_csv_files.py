"""CSV files with other separators and decimal marks than commas and points."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import describe, table

NUMBERS = np.array([[0.5 + i, 1e-3 * i**2] for i in range(24)])
KINDS = np.array(["red", "blue"])[np.arange(24) % 2]


def written(path, by=",", mark=".", head=None, end="\n"):
    head = head or by.join(["size", "mass", "kind"])
    rows = [[f"{a:.3f}", f"{b:.3e}", kind] for (a, b), kind in zip(NUMBERS, KINDS)]
    lines = [by.join(cell.replace(".", mark) for cell in row) for row in rows]
    path.write_bytes((end.join([head, *lines]) + end).encode("utf-8-sig"))
    return str(path)


def load(path, **roles):
    return data.load("table", path=path, roles=table.Roles(**roles))


@pytest.mark.parametrize(
    "by, mark, said",
    [
        (",", ".", ""),
        (";", ".", "semicolons between cells; "),
        ("\t", ".", "tabs between cells; "),
        (";", ",", "semicolons between cells, decimal commas; "),
        ("\t", ",", "tabs between cells, decimal commas; "),
        ("|", ",", "bars between cells, decimal commas; "),
    ],
)
def test_a_table_is_the_same_however_it_is_written(by, mark, said, tmp_path):
    """Also with the byte order mark and the line ends of a spreadsheet; the data line says how."""
    plain = load(written(tmp_path / "plain.csv"))
    other = load(written(tmp_path / "other.tsv", by, mark, end="\r\n"))
    assert other.normalization == plain.normalization
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(other, split).values, getattr(plain, split).values)
    assert describe.line(other).endswith(f"; {said}a tenth is held out by row")


def test_quotation_marks_protect_separators_and_decimal_commas(tmp_path):
    """Commas between cells, and numbers with decimal commas in quotation marks; 'a;b' is a name."""
    rows = [f'"{i},5",{i}' for i in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(['"a;b",c', *rows]) + "\n")
    loaded = load(str(tmp_path / "t.csv"))
    assert [c.name for c in table.columns_of(loaded.train)] == ["a;b", "c"]
    found = np.sort(np.concatenate([loaded.train.values, loaded.test.values]), 0)
    np.testing.assert_array_equal(found[:, 0], np.arange(24) + 0.5)


def test_every_row_decides_where_a_heading_has_several_separators(tmp_path):
    path = written(tmp_path / "t.csv", ";", ",", head="size, cm;mass, kg;kind")
    with pytest.raises(UserError) as error:  # three cells by semicolons, and by commas
        load(path)
    assert "can be read in two ways, as 3 columns by commas or 3 columns by semi" in str(
        error.value
    )
    names = [
        c.name
        for c in table.columns_of(load(written(tmp_path / "t.csv", ";", ".", "x, cm;b;c")).train)
    ]
    assert names == ["x, cm", "b", "c"]


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"a": "1,234"}, ["'a' has 1,234", "as 1.234, or as 1234 with its thousands apart"]),
        ({"a": "1,5", "b": "0.25"}, ["column 'a' has 1,5 and column 'b' 0.25", "with one of them"]),
        ({"a": "1.234,5"}, ["'a' has 1.234,5, a number whose thousands are apart"]),
        ({"a": "1,234,567.8"}, ["'a' has 1,234,567.8, a number whose thousands are apart"]),
    ],
)
def test_numbers_with_two_readings_are_refused_in_one_line(columns, words, tmp_path):
    """And are not, if the column is excluded or declared as categories."""
    cells = columns | {"n": "1"}
    (tmp_path / "t.csv").write_text("\n".join([";".join(cells), *[";".join(cells.values())] * 24]))
    with pytest.raises(UserError) as error:
        load(str(tmp_path / "t.csv"))
    assert "\n" not in str(error.value) and "cannot be read" not in str(error.value)
    for word in words:
        assert word in str(error.value), error.value
    load(str(tmp_path / "t.csv"), exclude=tuple(columns))
    load(str(tmp_path / "t.csv"), categories=("a",))


def test_a_comma_begins_decimals_where_one_column_shows_it(tmp_path):
    """1,234 next to 0,25 is a number with three decimals; a missing cell is named as ever."""
    lines = ["a;b", *(f"{1 + i % 9},234;{i},25" for i in range(24))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert load(str(tmp_path / "t.csv")).normalization.high[0] == 9.234
    (tmp_path / "t.csv").write_text("\n".join([*lines, ";1,5"]))
    with pytest.raises(UserError, match=r"column 'a' has 1 missing value \(row 25"):
        load(str(tmp_path / "t.csv"))
