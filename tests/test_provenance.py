"""Records of where a number comes from, and the files they are kept in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from diffusion_jax.core import files, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import tables


def test_the_record_names_what_is_needed_to_repeat_a_result():
    record = provenance.provenance({"a": 1}, seed=np.int64(3))
    assert (
        record["versions"]["jax"] == jax.__version__
        and record["versions"]["numpy"] == np.__version__
    )
    assert (
        record["devices"]["backend"] == jax.default_backend()
        and record["devices"]["count"] == jax.device_count()
    )
    assert record["cpu"]["cores"] >= 1 and Path(sys.executable).name in record["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert record["config_hash"] == provenance.config_hash({"a": 1}) and record["seed"] == 3
    assert json.loads(json.dumps(record)) == record


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_this_package_s_own_and_says_when_files_differ(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    file = tmp_path / "module.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    file.write_text("1")
    assert provenance.provenance()["commit"] is None  # no repository
    git("init")
    (tmp_path / "other").write_text("1")
    git("add", "other")
    git("commit", "-m", "m")
    assert provenance.provenance()["commit"] is None  # installed inside somebody else's repository
    git("add", "module.py")
    git("commit", "-m", "m")
    assert provenance.provenance()["commit"] == git("rev-parse", "HEAD")
    file.write_text("2")
    assert provenance.provenance()["commit"] == git("rev-parse", "HEAD") + "-dirty"


def test_a_record_is_made_even_where_nothing_can_be_found_out(monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no")

    monkeypatch.setattr(subprocess, "run", broken)
    monkeypatch.setattr(provenance.metadata, "version", broken)
    monkeypatch.setattr(provenance.Path, "read_text", broken)
    monkeypatch.setattr(jax, "devices", broken)
    record = provenance.provenance({"a": 1}, seed=0)
    assert (
        record["commit"]
        is record["devices"]
        is record["versions"]["jax"]
        is record["cpu"]["model"]
        is None
    )
    assert record["seed"] == 0


def test_the_hash_of_a_config_depends_on_its_values_alone():
    config = {"b": [1, 2.5], "a": {"x": True, "y": None}}
    same = ml_collections.ConfigDict(
        {"a": {"y": None, "x": np.bool_(True)}, "b": (np.int32(1), 2.5)}
    )
    assert provenance.config_hash(config) == provenance.config_hash(same)
    assert provenance.config_hash(config) != provenance.config_hash(config | {"b": [1, 2.6]})


def test_json_round_trip_of_arrays(tmp_path):
    path = tmp_path / "a" / "b.json"
    value = {
        "x": np.arange(3),
        "y": jnp.ones((1, 2)),
        5: np.float32(0.5),
        "n": np.nan,
        "p": tmp_path,
        "s": {2, 1},
    }
    files.save_json(path, value)
    loaded = files.load_json(path)
    assert np.isnan(loaded.pop("n"))
    assert loaded == {"x": [0, 1, 2], "y": [[1.0, 1.0]], "5": 0.5, "p": str(tmp_path), "s": [1, 2]}
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.save_json(path, 1)
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("half")
        raise RuntimeError
    assert files.load_json(path) == 1 and list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"a": 1')
    with pytest.raises(UserError, match=r"broken\.json' is not valid JSON .*line 1"):
        files.load_json(broken)
    with pytest.raises(UserError, match=r"cannot read '.*missing\.json'"):
        files.load_json(tmp_path / "missing.json")
    with pytest.raises(UserError, match=r"cannot write '.*x\.json'"):
        files.save_json(broken / "x.json", 1)
    with pytest.raises(UserError, match="it is a folder"):
        files.save_json(tmp_path, 1)


def test_markdown_table():
    rows = [{"sampler": "a|b", "nfe": np.int64(5), "fd": 0.123456}, {"sampler": "c", "nfe": 10}]
    expected = (
        "| solver   |   nfe |     fd |\n"
        "|:---------|------:|-------:|\n"
        "| a\\|b     |     5 | 0.1235 |\n"
        "| c        |    10 |      - |\n"
    )
    assert tables.markdown_table(rows, {"sampler": "solver", "nfe": "nfe", "fd": "fd"}) == expected
    assert tables.markdown_table(rows, ["nfe"]).splitlines()[0] == "|   nfe |"
