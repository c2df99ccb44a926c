"""Nothing that is read from a file is run: caches, imports, arrays, terminals, rules."""

from __future__ import annotations

import ast
import functools
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.core import errors, npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import consent
from diffusion_jax.evaluation import recognition
from diffusion_jax.pretrained import pickles
from diffusion_jax.report import tables
from experiments import arguments
from tests.hostile import Marker

ROOT = Path(__file__).parent.parent


def test_a_pickle_in_the_place_of_a_cache_is_not_run(tmp_path, capsys):
    images, labels = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4, 1), np.array([0, 1, 0, 1])
    recognize = recognition.recognizer(images, labels, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    for name in (kept.name, kept.with_suffix(".pkl").name):
        (tmp_path / name).write_bytes(pickle.dumps(Marker(tmp_path / "mark")))
    assert (
        recognition.recognizer(images, labels, cache_dir=tmp_path)(images) == recognize(images)
    ).all()
    assert not (tmp_path / "mark").exists() and "is damaged" in capsys.readouterr().err
    objects = np.array([Marker(tmp_path / "mark")] * 4, object)
    np.savez(kept, **recognition._fit(images, labels)._asdict() | {"vectors": objects})
    assert (
        recognition.recognizer(images, labels, cache_dir=tmp_path)(images) == recognize(images)
    ).all()
    assert not (tmp_path / "mark").exists() and "pickle" in capsys.readouterr().err


@functools.cache
def calls_and_imports() -> list[tuple[str, ast.AST]]:
    """(file, node) of every call and import of the package and its commands."""
    files = [*(ROOT / "diffusion_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]
    places = {str(file.relative_to(ROOT)).removeprefix("diffusion_jax/"): file for file in files}
    return [
        (place, node)
        for place, file in places.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.Call, ast.Import, ast.ImportFrom))
    ]


def dotted(node: ast.expr) -> str:
    """'a.b.c' of a called name; '' for a call of anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}


def test_the_package_imports_nothing_that_runs_what_it_reads():
    """No unpickling, no evaluation of text, no numpy.load that may unpickle."""
    for place, node in calls_and_imports():
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        assert not {name.partition(".")[0] for name in names if name} & FORBIDDEN, place
        if isinstance(node, ast.Call):
            where = place, node.lineno
            assert dotted(node.func) not in (
                "eval",
                "exec",
                "__import__",
                "os.system",
                "compile",
            ), where
            for keyword in node.keywords:
                assert (
                    keyword.arg not in ("allow_pickle", "shell")
                    or ast.unparse(keyword.value) == "False"
                ), where


def test_an_interpreter_of_pickles_makes_nothing_but_data():
    assert pickles.read(b"\x80\x02}X\x01\x00\x00\x00aK\x05s.", 0, lambda name: None) == (
        {"a": 5},
        13,
    )
    found, _ = pickles.read(
        pickle.dumps([1, -(2**40), 2.5, None, True, "ä", b"b", (1, 2, 3, 4), {"x": [()]}], 4),
        0,
        lambda name: None,
    )
    assert found == [1, -(2**40), 2.5, None, True, "ä", b"b", (1, 2, 3, 4), {"x": [()]}]
    made, _ = pickles.read(pickle.dumps(Marker(Path("x")), 2), 0, lambda name: None)
    assert (
        made == made
        and isinstance(made, pickles.Made)
        and made.name == pickles.Name("posix", "mkdir")
        and made.args == ("x",)
    )


def test_an_npz_that_is_no_set_of_plain_arrays_is_refused(tmp_path, monkeypatch):
    any_float = {"a": npz.ArraySpec("f")}
    path = tmp_path / "a.npz"
    for arrays, words in (
        ({"a": np.array([{}], object)}, "pickle"),
        ({"b": np.ones(2)}, "lacks a"),
        ({"a": np.ones(2, int)}, "kind f"),
        ({"a": np.array([np.nan])}, "not finite"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=words):
            npz.load(path, any_float)
    np.savez(path, a=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    np.testing.assert_array_equal(npz.load(path, any_float)["a"], np.arange(6.0).reshape(2, 3))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(16))
    with pytest.raises(UserError, match="in .* bytes"):
        npz.load(path, any_float)
    monkeypatch.setattr(npz, "SMALL", 2**12)
    np.savez_compressed(path, a=np.zeros(2**15))
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        npz.load(path, any_float)
    assert len(npz.load(path, any_float, unpacked=1100)["a"]) == 2**15
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        npz.load(path, any_float)


def test_what_is_printed_from_files_cannot_control_the_terminal():
    hostile = "a\x1b]0;title\x07\x9b31m\r\u202ecod.exe\u2028\udcff"
    shown = errors.printable(hostile)
    assert shown == r"a\x1b]0;title\x07\x9b31m\r\u202ecod.exe\u2028\udcff" and shown.isprintable()
    assert errors.printable("T-shirt, 日本, é, 👩\u200d🚀") == "T-shirt, 日本, é, 👩\u200d🚀"
    assert str(UserError(f"class '{hostile}'\n  of a file")) == f"class '{shown}' of a file"
    assert (
        hostile not in (table := tables.markdown_table([{"class": hostile}], ["class"]))
        and shown in table
    )


# files whose formats have a reader of their own, or that this program wrote a moment before
READERS = {
    "np.load": {"data/captions.py"},
    "json.load": set(),
    "files.load_json": set(),
    "load_json": set(),
    "json.loads": {
        "core/reading.py",
        "data/tfds_builder.py",
        "data/captions.py",
        "pretrained/safetensors.py",
        "assembly/same_run.py",
        "training/distributed.py",  # what another process of the same run sends
    },
}


FRESH = {
    "studies/own_network.py",
    "assembly/train.py",
}  # read the provenance.json that they have just written


def test_every_file_is_read_within_bounds_and_by_a_rule():
    """A new command that reads what it kept by itself is found here: it is to use `reading`."""
    for place, node in calls_and_imports():
        if isinstance(node, ast.Call) and (called := dotted(node.func)) in READERS:
            ruled = called.endswith("load_json") and (len(node.args) > 1 or place in FRESH)
            assert ruled or place in READERS[called], (place, node.lineno)


def test_a_data_path_on_the_command_line_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    arguments._remember(
        [("data.path", str(tmp_path / "images")), ("data.name", "folder"), ("data.data_dir", None)]
    )
    assert consent.remembered(str(tmp_path / "images")) and consent.remembered(
        f"{tmp_path}/x/../images"
    )
    assert not consent.remembered("folder") and not consent.remembered(str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: Path("/proc/no/home"))
    consent.remember("a")  # a home that cannot be written: the user says it each time
    assert not consent.remembered("a")
