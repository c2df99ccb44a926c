"""Hostile torch and safetensors files are refused, whatever is in them."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import safetensors, torchfile
from diffusion_jax.studies.weights import import_weights
from tests.pretrained.conversions import fixture
from tests.pretrained.test_extractors import STATE, Global, Storage, legacy, pickled, tensor, zipped

WRITERS = {"zip": zipped, "legacy": legacy}


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
    "two tensors of one name": {"a": {"b": FLOATS}, "a.b": FLOATS},
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


def test_a_zip_with_two_members_of_one_name_is_refused():
    """Programs differ in which of them they read."""
    data = zipped(STATE).replace(b"archive/data/1", b"archive/data/0")
    with pytest.raises(UserError, match="'archive/data/0' is given twice"):
        torchfile.load(data)


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


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_import_of_a_hostile_file_is_one_line_and_makes_no_workdir(write, tmp_path):
    """Views of other memory, objects in place of numbers, and a name that is called."""
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
