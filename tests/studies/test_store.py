"""Results that are kept on disk: resumed by key, made again where damaged or of other settings."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffusion_jax.core import files, npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies import store

RULE = reading.record({"rows": reading.items(reading.table())})


@pytest.mark.parametrize("nested", ["", "about"])
def test_a_row_is_made_once_and_found_again_by_its_key(tmp_path, nested, capsys):
    path, made = tmp_path / "a.json", []

    def run(settings):
        table = store.open_table(path, settings, RULE, nested=nested)
        return [
            store.row(table, {"n": n}, lambda n=n: made.append(n) or {"score": np.float32(n)})
            for n in (1, 2)
        ]

    first = run({"seed": 0, "shape": (2, 3)})
    assert first == [{"n": 1, "score": 1.0}, {"n": 2, "score": 2.0}]
    assert run({"seed": 0, "shape": (2, 3)}) == first and made == [1, 2]
    written = json.loads(path.read_text())
    assert (written[nested] if nested else written)["shape"] == [2, 3]
    assert written["rows"] == first and written["provenance"]["config_hash"]
    assert capsys.readouterr().err == ""
    run({"seed": 1, "shape": (2, 3)})
    assert made == [1, 2, 1, 2] and "made with other settings" in capsys.readouterr().err


def test_an_interrupted_row_leaves_the_earlier_ones(tmp_path):
    table = store.open_table(tmp_path / "a.json", {"a": 1}, RULE)
    store.row(table, {"n": 1}, dict)
    with pytest.raises(ZeroDivisionError):
        store.row(table, {"n": 2}, lambda: 1 / 0)
    assert store.open_table(tmp_path / "a.json", {"a": 1}, RULE).rows == [{"n": 1}]


def test_other_fields_of_a_table_are_kept_and_its_provenance_is_that_of_the_config(tmp_path):
    table = store.open_table(tmp_path / "a.json", {"a": 1}, RULE, config={"b": 2})
    table.content["exact"] = {"what": "a fine solve"}
    store.save(table)
    again = store.open_table(tmp_path / "a.json", {"a": 1}, RULE, config={"b": 2})
    assert again.content["exact"] == {"what": "a fine solve"} and again.rows == []
    stamp = files.load_json(tmp_path / "a.json")["provenance"]
    assert stamp["config_hash"] == store.provenance.config_hash({"b": 2})


def test_a_damaged_table_is_started_anew_after_a_warning(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text('{"rows": [1]}')
    assert store.open_table(path, {}, RULE).rows == []
    assert "warning: " in (said := capsys.readouterr().err) and "made again" in said


def test_a_cell_holds_a_record_and_arrays_under_a_name_that_its_identity_gives(tmp_path, capsys):
    path = store.cell_path(tmp_path, {"b": 1, "a": (2,)})
    assert path == store.cell_path(tmp_path, {"a": [2], "b": 1}) and len(path.stem) == 20
    assert path != store.cell_path(tmp_path, {"a": [2], "b": 2})
    store.save_cell(path, "row", {"x": float("nan")}, {"samples": np.arange(3), "none": None})

    def read(path):
        score = reading.table(reading.number(finite=False))
        return store.read_cell(path, "row", score, {"samples": npz.ArraySpec("iu", (3,))})

    record, arrays = store.load(path, read)
    assert np.isnan(record["x"]) and list(arrays) == ["samples"]
    assert store.load(path, read, fresh=True) is None
    assert store.load(tmp_path / "none.npz", read) is None and capsys.readouterr().err == ""
    path.write_bytes(b"cut short")
    with pytest.raises(UserError):
        read(path)
    assert store.load(path, read) is None and "made again" in capsys.readouterr().err
