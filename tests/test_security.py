"""Nothing received may execute, and none of it may hang, crash or exhaust the memory
(docs/security.md).

Each attack leaves a harmless mark where it works: a file, or a byte of memory that it should not
see. All of them worked on the code of before.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import digits
from diffusion_jax import data, errors, files, npz
from diffusion_jax.assembly import datasets, experiment, workdir
from diffusion_jax.data import consent, records, tfds_builder
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import recognition
from diffusion_jax.pretrained import pickles, safetensors, torchfile
from diffusion_jax.report import curves, tables
from diffusion_jax.studies import import_weights
from diffusion_jax.training import checkpoint
from experiments import arguments
from tests import commands
from tests.data.test_data import write_tfds
from tests.pretrained.conversions import fixture
from tests.pretrained.test_extractors import STATE, Global, Storage, legacy, pickled, tensor, zipped

ROOT = Path(__file__).parent.parent
WRITERS = {"zip": zipped, "legacy": legacy}


class Marker:
    """A pickle of it, read by pickle itself, makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# ---- torch files
def rebuilt(of, offset, shape, stride):
    """A tensor made of anything."""
    return Global("torch._utils", "_rebuild_tensor_v2", (of, offset, shape, stride, False, {}))


FLOATS = tensor("0", "FloatStorage", 0, (6,), (1,))

ENDLESS = rebuilt(
    Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 6)), 0, (2**40,), (0,)
)

ATTACKS = {
    "a view of more elements than there are": ENDLESS,
    "a tensor made of that view, which reads the memory behind the file": rebuilt(
        ENDLESS, 0, (1000,), (1,)
    ),
    "a tensor made of a number": rebuilt(Global("torch", "FloatStorage", (1.5,)), 0, (1,), (1,)),
    "a tensor made of a dictionary": rebuilt({}, 0, (1,), (1,)),
    "a storage of Python objects": rebuilt(Storage(("storage", "O", "0", "cpu", 6)), 0, (1,), (1,)),
    "a storage of bytes that are pointers": rebuilt(
        Storage(("storage", "V8", "0", "cpu", 6)), 0, (1,), (1,)
    ),
    "a storage larger than the file": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 2**40)),
        0,
        (2**40,),
        (1,),
    ),
    "a negative offset": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 6)), -5, (6,), (1,)
    ),
    "a negative stride": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 6)), 0, (3,), (-1,)
    ),
    "a size that is no number": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", "6")), 0, (3,), (1,)
    ),
    "sizes whose product wraps round": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 6)),
        0,
        (2**32, 2**32),
        (0, 0),
    ),
    "names of ten thousand letters, each written once": {"A" * 10_000: [FLOATS] * 60},
    "a fractional shape": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 6)), 0, (1.5,), (1,)
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_tensor_is_a_view_of_its_own_storage_and_nothing_else(attack, write):
    with pytest.raises(UserError) as refused:
        found = torchfile.load(write({"w": ATTACKS[attack]}))
        pytest.fail(f"{attack}: {found['w'].dtype} {found['w'].shape}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_nothing_that_a_torch_file_names_is_imported_called_or_changed(write, tmp_path):
    for module, name, args in (
        ("os", "mkdir", (str(tmp_path / "mark"),)),
        ("builtins", "eval", ("1",)),
        ("numpy", "load", ("x",)),
        ("builtins", "getattr", (1, "real")),
        ("collections", "Counter", ([1],)),
        ("torch", "load", ("x",)),
        ("diffusion_jax.pretrained.torchfile", "load", (b"",)),
    ):
        with pytest.raises(UserError, match=f"names {module}.{name}, which is not a tensor"):
            torchfile.load(write({"w": Global(module, name, args)}))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="calls torch.FloatStorage, which is not a tensor"):
        torchfile.load(write({"w": Global("torch", "FloatStorage", (3,))}))


def program(*parts: bytes) -> bytes:
    return zipped_pickle(b"\x80\x02" + b"".join(parts) + b".")


def zipped_pickle(data: bytes, **kwargs) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **kwargs) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(24))
    return stream.getvalue()


DOUBLED = b"".join(
    b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1]) if i else b"N") * 9 + b"e" for i in range(40)
)

BOMBS = {
    "lists of nine times the same list, forty deep": DOUBLED,
    "three hundred thousand steps": b"}0" * 150_000,
    "bytes of which only the length is there": b"B\xff\xff\xff\x7f",
    "text of which only the length is there": b"\x8d" + struct.pack("<Q", 2**60),
    "an integer of two thousand million bytes": b"\x8b\xff\xff\xff\x7f",
    "lists twenty thousand deep": b"]" * 20_000 + b"a" * 19_999,
    "a list that holds itself": b"]q\x00h\x00a",
    "no end": b"N" * 1000 + b"C\x02",
    "more pops than pushes": b"0" * 10,
    "a mark that is none": b"t",
    "a state for text": b"X\x01\x00\x00\x00aNb",
    "items for text": b"X\x01\x00\x00\x00aNNs",
    "a dictionary as a key": b"}}Ns",
    "a name without an end": b"c" + b"a" * 5000,
    "a call of text": b"X\x01\x00\x00\x00a)R",
    "an opcode of protocol 0": b"I1\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_in_a_pickle_end_at_once(bomb):
    data, began = program(BOMBS[bomb]), time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as refused:
            torchfile.load(data)
            pytest.fail("it was read")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (
        time.monotonic() - began < 20
        and peak < 2 * len(data) + 2**26
        and "\n" not in str(refused.value)
    )


def test_a_memo_takes_no_more_memory_than_what_is_in_it():
    tracemalloc.start()
    try:
        assert torchfile.load(program(b"}r\xff\xff\xff\x7f")) == {}  # place 2,147,483,647
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_zips_that_unpack_to_more_than_they_are_are_refused():
    bomb = zipped_pickle(b"\x80\x02" + b"N0" * 10_000_000 + b"N.", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="unpacks to more than twice its size"):
        torchfile.load(bomb)
    whole = zipped(STATE)
    place = whole.index(np.arange(6, dtype=np.float32).tobytes())
    with pytest.raises(UserError, match="'archive/data/0' in this torch file is damaged"):
        torchfile.load(whole[: place + 4] + b"\xff" + whole[place + 5 :])


CALLS = {  # what TorchScript and parameters add
    "p": Global("torch._utils", "_rebuild_parameter", (FLOATS, True, {})),
    "s": Global("torch.jit._pickle", "restore_type_tag", ([FLOATS, FLOATS], "List[Tensor]")),
    "m": Global("__torch__.Net", "Net", ()),
    "o": Global("collections", "OrderedDict", ()),
    "i": rebuilt(
        Storage(("storage", Global("torch", "FloatStorage", None), "0", "cpu", 6)),
        0,
        Global("torch.jit._pickle", "build_intlist", ([2, 3],)),
        (3, 1),
    ),
}


def mutated(rng: random.Random, seed_files: list[bytes]) -> bytes:
    """One of the files with a few bytes, pieces or numbers changed; of a zip also within its
    pickle, so that its sums are right.
    """
    data = bytearray(rng.choice(seed_files))
    zip_of = data[:2] == b"PK" and rng.random() < 0.7
    if zip_of:
        data = bytearray(pickled(rng.choice((STATE, STATE | CALLS))))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, kind = rng.randrange(len(data)), rng.randrange(7)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] = rng.choice(
                b"\x00\x01\x7f\x80\xff.()]}etsuaqrhjRbQcX\x85\x86\x87\x81\x94\x93JKM"
            )
        elif kind == 2:
            del data[at : at + rng.choice((1, 2, 8, 40))]
        elif kind == 3:
            data[at:at] = data[rng.randrange(len(data)) :][: rng.choice((1, 4, 30))]
        elif kind == 4:
            data[at : at + 5] = b"J" + struct.pack(
                "<i", rng.choice((-1, 0, 1, 7, 2**31 - 1, -(2**31), 65536))
            )
        elif kind == 5:
            data[at:at] = b"\x8a\x08" + struct.pack(
                "<q", rng.choice((2**40, 2**62, -1, -(2**63), 2**63 - 1))
            )
        else:
            data[at : at + 1] = b"K" + bytes([rng.randrange(256)])
        data = data or bytearray(b"\x80")
    return zipped_pickle(bytes(data)) if zip_of else bytes(data)


def fuzz_torch(count: int, seed: int) -> int:
    """Reads mutated files and touches every element that they give; returns how many were read. No
    more memory than twice the file.
    """
    rng, seeds, read = (
        random.Random(seed),
        [zipped(STATE), legacy(STATE), zipped(STATE | CALLS), legacy(STATE | CALLS)],
        0,
    )
    assert len(torchfile.load(seeds[2])) == len(torchfile.load(seeds[3])) == 6  # the controls
    tracemalloc.start()
    try:
        for i in range(count):
            data, began = mutated(rng, seeds), time.monotonic()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                found = torchfile.load(data)
            except UserError as error:
                assert "\n" not in str(error) or len(str(error)) < 2000
            else:
                peak = tracemalloc.get_traced_memory()[1] - before
                read += 1
                for array in found.values():
                    assert array.dtype in {
                        np.dtype(d) for d in torchfile.DTYPES.values()
                    } and array.nbytes <= len(data)
                    array.copy()
                assert peak < 2 * len(data) + 2**20, (i, peak)
            assert tracemalloc.get_traced_memory()[1] - before < 2 * len(data) + 2**20, i
            assert time.monotonic() - began < 10, i
    finally:
        tracemalloc.stop()
    return read


def test_mutated_torch_files_are_read_or_refused():
    assert 3 < fuzz_torch(200, 0) < 190  # some mutations touch what is not read


@pytest.mark.long
def test_ten_thousand_mutated_torch_files_are_read_or_refused():
    assert fuzz_torch(10_000, 1) > 100


# ---- safetensors
def stored(header, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data, words",
    [
        (stored({"a": entry(), "b": entry()}), "invalid offset for tensor"),
        (
            stored({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)),
            "invalid offset for tensor",
        ),
        (stored({"a": entry(8, 16, (2,))}), "invalid offset for tensor"),
        (stored({"a": entry()}, bytes(20)), "file not fully covered"),
        (stored({"a": entry(0, 16, (2**61, 2**61))}), "overflow computing buffer size"),
        (stored({"a": entry(0, 16, (2.0, 2))}), "floating point `2.0`, expected usize"),
        (stored({"a": entry(0, 16, (-2, -2))}), "integer `-2`, expected usize"),
        (stored({"a": entry(0, 16, (True, 4))}), "boolean `true`, expected usize"),
        (
            stored({"a": entry(0, 16) | {"more": 1}}),
            "does not have exactly dtype, shape and data_offsets",
        ),
        (stored({"a": None}), "does not have exactly dtype"),
        (stored([]), "is not an object"),
        (stored(b'{"a": 1, "a": 2}'), "the key 'a' is given twice"),
        (stored(b"[" * 100_000), "RecursionError"),
        (struct.pack("<Q", 2**62) + b"{}", "a header of"),
        (struct.pack("<Q", 2**24 + 1) + b" " * (2**24 + 1), "a header of"),
        (stored({"a": entry(0, 16, (16,), "BOOL")}, b"\x02" * 16), "other bytes than 0 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_safetensors_are_refused(data, words):
    with pytest.raises(UserError, match=words) as refused:
        safetensors.load(data)
    assert "\n" not in str(refused.value)


def test_mutated_safetensors_are_read_or_refused():
    rng, whole = (
        random.Random(0),
        stored({"a": entry(), "b": entry(16, 24, (1,), "I64")}, bytes(24)),
    )
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            found = safetensors.load(bytes(data))
        except UserError:
            continue
        assert sum(array.nbytes for array in found.values()) <= len(data)


# ---- caches, and what the package may import
def test_a_pickle_in_the_place_of_a_cache_is_not_run(tmp_path, capsys):
    images, labels = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4, 1), np.array([0, 1, 0, 1])
    recognise = recognition.recognizer(images, labels, cache_dir=tmp_path)
    (kept,) = tmp_path.iterdir()
    for name in (kept.name, kept.with_suffix(".pkl").name):
        (tmp_path / name).write_bytes(pickle.dumps(Marker(tmp_path / "mark")))
    assert (
        recognition.recognizer(images, labels, cache_dir=tmp_path)(images) == recognise(images)
    ).all()
    assert not (tmp_path / "mark").exists() and "is damaged" in capsys.readouterr().err
    objects = np.array([Marker(tmp_path / "mark")] * 4, object)
    np.savez(kept, **recognition._fit(images, labels)._asdict() | {"vectors": objects})
    assert (
        recognition.recognizer(images, labels, cache_dir=tmp_path)(images) == recognise(images)
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


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}


def test_the_package_imports_nothing_that_runs_what_it_reads():
    """No unpickling, no evaluation of text, no numpy.load that may unpickle."""
    for place, node in calls_and_imports():
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        assert not {name.partition(".")[0] for name in names if name} & FORBIDDEN, place
        if isinstance(node, ast.Call):
            where = place, node.lineno
            assert ast.unparse(node.func) not in (
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


def test_an_npz_that_is_no_set_of_plain_arrays_is_refused(tmp_path):
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
    np.savez_compressed(path, a=np.zeros(2**24))
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        npz.load(path, any_float)
    assert len(npz.load(path, any_float, unpacked=1100)["a"]) == 2**24
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        npz.load(path, any_float)


# ---- terminals
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


# ---- data sets and workdirs of strangers
def write_eps(folder: Path) -> bytes:
    """Encapsulated PostScript that Ghostscript, which Pillow starts for it, would draw."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n("
        + str(folder / "mark").encode()
        + b") (w) file closefile\n%%EOF\n"
    )


@pytest.fixture()
def hostile(tmp_path, monkeypatch):
    """A prepared TFDS set whose features.json names a Python class of the current folder, which
    leaves a mark when imported.
    """
    write_tfds(str(tmp_path / "data"), {"train": [1, 2, 3], "test": [2, 3]}, name="trap")
    file = tmp_path / "data" / "trap" / "1.0.0" / "features.json"
    (tmp_path / "trap_features.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # as 'python -m' has the current folder
    told = json.loads(file.read_text())
    assert told["pythonClassName"].endswith("FeaturesDict")
    told["featuresDict"]["features"]["image"]["pythonClassName"] = "trap_features.Image"
    file.write_text(json.dumps(told))
    return tmp_path


def test_a_data_set_cannot_name_python_classes(hostile):
    with pytest.raises(UserError, match="names the Python class trap_features.Image, which is not"):
        data.load("trap", data_dir=str(hostile / "data"))
    with pytest.raises(UserError, match="names the Python class trap_features.Image"):
        records.described("trap", str(hostile / "data"), 0, 0)
    assert not (hostile / "mark").exists()


LEGACY = {
    "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "content": {"image": {"type": "trap.X", "content": {}}},
}


@pytest.mark.parametrize(
    "told, words",
    [
        (LEGACY, "trap.X"),
        (
            {"jsonFeature": {"json": json.dumps({"feature": {"pythonClassName": "trap.Y"}})}},
            "trap.Y",
        ),
        ({"json_feature": {"json": json.dumps([{"python_class_name": "os.X"}])}}, "os.X"),
        ({"jsonFeature": {"json": '{"a": '}}, "a text that is not JSON"),
        (
            {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image.."},
            "image_feature.Image..",
        ),
    ],
)
def test_class_names_are_found_wherever_tfds_looks_for_them(tmp_path, told, words):
    for folder in ("1.0.0", "config/1.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "features.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=words):
            tfds_builder.check_features("trap", tmp_path)
        (tmp_path / folder / "features.json").unlink()
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "1.0.0")
    (tmp_path / "1.0.0" / "features.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested more than 64 deep"):
        tfds_builder.check_features("trap", linked)


@pytest.mark.parametrize(
    "name",
    [
        "huggingface:trap",
        "kubric:movi_a",
        "trap/data_dir=elsewhere",
        "../trap",
        "trap/../..",
        "a/b/c",
    ],
)
def test_names_that_fetch_code_or_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot be used: write a name"):
        data.load(name, data_dir=str(tmp_path))


def test_pictures_of_a_data_set_are_opened_in_listed_formats_alone(tmp_path):

    image = tfds.features.Image(shape=(2, 2, 1), encoding_format="png")
    features = {
        "image": image,
        "other": {"image": image, "more": tfds.features.Sequence(image)},
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    eps, png = write_eps(tmp_path), io.BytesIO()
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(png, "PNG")

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in ("train", "test")}

        def _generate_examples(self):
            for i in range(2):
                hidden = {
                    "image": io.BytesIO(eps),
                    "more": [io.BytesIO(eps)],
                }  # features that are not used are not opened
                yield (
                    i,
                    {
                        "image": io.BytesIO(eps if self.name == "eps" else png.getvalue()),
                        "other": hidden,
                        "label": i,
                    },
                )

    for Writer.name in ("eps", "whole"):
        Writer(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="image [01] cannot be read .cannot identify image file"):
        data.load("eps", data_dir=str(tmp_path)).train.rows(np.arange(2))
    found = data.load("whole", data_dir=str(tmp_path)).train.rows(np.arange(2))
    assert (
        (found["image"] == 7).all()
        and found["image"].shape == (2, 2, 2, 1)
        and not (tmp_path / "mark").exists()
    )


def untrained_workdir(root: Path) -> Path:
    """A workdir with the smallest U-Net of digits, whose weights are zeros."""
    config = digits.get_config("vp").unlock()
    config.model.update(width=8, multipliers=(1,), blocks=0, attention=(), head_width=8)
    config.ema.halflives = ()
    config.sampler.ema = ""
    workdir.prepare(
        root, config.lock(), data.Dataset("digits", None, None, (8, 8, 1), 10, tuple("0123456789"))
    )
    built = experiment.assemble(config, (8, 8, 1), 10)
    shapes = jax.eval_shape(lambda key: built.kind.init(built, key), jax.random.key(0))
    with contextlib.closing(checkpoint.Checkpointer(root / "checkpoints")) as checkpoints:
        checkpoints.save(
            0, {"params": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)}, {}
        )
    return root


def strange_workdir(root: Path, **values) -> Path:
    """A workdir with the config of digits and these values of config.data."""
    config = digits.get_config().unlock()
    config.data.update(values)
    files.save_json(root / "config.json", config.to_dict())
    return root


def test_a_stored_data_path_is_not_followed_without_the_users_own_word(
    hostile, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(hostile / "home"))
    root = strange_workdir(hostile / "run", name="trap", data_dir=str(hostile / "data"))
    found = workdir.saved_config(root)
    assert found.data.data_dir == "" and found.data.name == "trap"
    told = capsys.readouterr().err
    assert (
        told.count("\n") == 1 and f"say so once: --config.data.data_dir={hostile / 'data'}" in told
    )
    with pytest.raises(UserError, match="unknown data set 'trap'"):
        datasets.dataset(found)
    found.data.data_dir = str(
        hostile / "data"
    )  # the user repeats it: still no class of the current folder is imported
    with pytest.raises(UserError, match="names the Python class trap_features.Image"):
        datasets.dataset(found)
    assert not (hostile / "mark").exists()


def test_the_data_of_the_users_own_runs_are_found_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = digits.get_config().unlock()
    config.data.update(path=str(tmp_path / "images"), data_dir="~/sets", captions="words.json")
    monkeypatch.chdir(tmp_path)
    unseen = data.Dataset("folder", None, None, (8, 8, 1), 2, ("a", "b"))
    workdir.prepare(tmp_path / "run", config.lock(), unseen)
    assert (
        workdir.saved_config(tmp_path / "run").data == config.data and capsys.readouterr().err == ""
    )
    for key in consent.KEYS:
        moved = strange_workdir(tmp_path / "other", **{key: f"/somewhere/{key}"})
        assert (
            workdir.saved_config(moved).data[key] == ""
            and f"data.{key}=/somewhere/{key}" in capsys.readouterr().err
        )


LONG = [
    pytest.param(name, marks=pytest.mark.long)
    for name in ("evaluate", "likelihood", "compare_samplers", "edit")
]


@pytest.mark.parametrize("command", ["statistics", *LONG])
def test_commands_on_a_strangers_workdir_run_nothing_of_it(command, hostile):
    """As typed, in the folder that holds the stranger's Python file; each ends with one line."""
    root = untrained_workdir(hostile / "run")
    told = json.loads((root / "config.json").read_text())
    told["data"] |= {"name": "trap", "data_dir": str(hostile / "data")}
    files.save_json(root / "config.json", told)
    more = ["--out=x.npz"] if command == "statistics" else []
    for word in ([], [f"--config.data.data_dir={hostile / 'data'}"]):
        done = commands.run(command, f"--workdir={root}", *more, *word)
        assert done.returncode == 2 and not (hostile / "mark").exists(), done.stderr
        assert (
            "Traceback" not in done.stderr
            and ("trap_features.Image" if word else "unknown data set 'trap'") in done.stderr
        )


def test_a_name_with_dollars_is_no_formula(tmp_path):
    with curves._figure(tmp_path / "a.png", 1) as axes:
        axes[0].set(title=r"$\frac$ and $x^$")
    assert (tmp_path / "a.png").is_file()


def test_a_pipe_in_a_data_set_is_refused_where_tfds_would_wait(tmp_path):
    write_tfds(str(tmp_path), {"train": [1], "test": [2]}, name="piped")
    for name in ("dataset_info.json", "features.json"):
        file = tmp_path / "piped" / "1.0.0" / name
        whole = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match="is not a regular file"):
            data.load("piped", data_dir=str(tmp_path))
        file.unlink()
        file.write_bytes(whole)
    assert len(data.load("piped", data_dir=str(tmp_path)).train) == 1


# files whose formats have a reader of their own, or that this program wrote a moment before
READERS = {
    "np.load": {"data/captions.py"},
    "json.load": set(),
    "files.load_json": set(),
    "load_json": set(),
    "json.loads": {
        "reading.py",
        "data/tfds_builder.py",
        "data/captions.py",
        "pretrained/safetensors.py",
        "assembly/same_run.py",
    },
}

FRESH = {
    "studies/import_weights.py",
    "assembly/train.py",
}  # read the provenance.json that they have just written


def test_every_file_is_read_within_bounds_and_by_a_rule():
    """A new command that reads what it kept by itself is found here: it is to use `reading`."""
    for place, node in calls_and_imports():
        if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in READERS:
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


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_import_of_a_hostile_file_is_one_line_and_makes_no_workdir(write, tmp_path):
    """Of the three forms of before: views of other memory, objects in the place of numbers, and a
    name that is called.
    """

    files.save_json(tmp_path / "theirs" / "config.json", fixture("unet")[0])
    file = tmp_path / "theirs" / "diffusion_pytorch_model.bin"
    for attack in (
        rebuilt(ENDLESS, 0, (1000,), (1,)),
        ATTACKS["a storage of Python objects"],
        Global("os", "mkdir", (str(tmp_path / "mark"),)),
    ):
        file.write_bytes(write({"conv_in.weight": attack}))
        with pytest.raises(UserError) as refused:
            import_weights.to_workdir("diffusers", str(tmp_path / "theirs"), str(tmp_path / "run"))
        assert "\n" not in str(refused.value) and sorted(
            path.name for path in tmp_path.iterdir()
        ) == ["theirs"]
