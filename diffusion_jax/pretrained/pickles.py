"""Pickles as data: an interpreter of their opcodes, which imports and calls nothing.

Python's own unpickler imports what a pickle names and calls it, so a filter around it is only as
good as its list of harmless functions. Here a name stays a `Name`, a call becomes a `Made` and a
persistent id a `PersistentId`: the reader of the file decides what they mean. The opcodes are
listed at https://docs.python.org/3/library/pickletools.html; those of protocol 0 and out-of-band
buffers are not supported, because neither torch.save nor Python's present protocols write them.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

# bytes of a pickle without its strings of bytes, which may be the numbers of tensors: a state dict
# of 10,000 tensors has 2 MB
PROGRAM = 2**24
# opcodes of any file, and bytes of the file for each one more: an object takes about 70 bytes
STEPS, PER_STEP = 200_000, 40

LONG = 16  # bytes of an integer


class DamagedPickle(Exception):
    """The bytes are not a pickle that can be read; the reason."""


class Name(NamedTuple):
    """A global that the pickle names, which is not looked up."""

    module: str
    name: str


class PersistentId(NamedTuple):
    """A persistent id, such as torch's ('storage', type, key, location, size)."""

    about: Any


@dataclasses.dataclass(slots=True, eq=False)
class Made:
    """The result of calling `name` with `args`, and the state and items that are added to it."""

    name: Name
    args: tuple
    state: Any = None
    items: dict = dataclasses.field(default_factory=dict)


def read(data: bytes, start: int, allows: Callable[[Name], None]) -> tuple[Any, int]:
    """Interpret the pickle at `start`.

    Args:
      data: the bytes of the whole file, whose length bounds the number of steps.
      start: where the pickle begins.
      allows: is given every name in the pickle, and raises for those that are refused.

    Returns:
      (the value, the position after the pickle).

    Raises:
      DamagedPickle: for bytes that are not such a pickle, and for programs that are longer than
        that of any file of tensors.
    """
    machine = _Machine(data, start, allows)
    for _ in range(steps(len(data))):
        code = machine.take(1)
        if code == b".":
            return machine.stack.pop(), machine.at
        if code not in _OPCODES:
            raise DamagedPickle(
                f"opcode {code!r} at byte {machine.at - 1}, which neither torch nor EDM writes"
            )
        _OPCODES[code](machine)
        if machine.at - start - machine.raw > PROGRAM:
            raise DamagedPickle(f"its pickle is longer than {PROGRAM} bytes")
    raise DamagedPickle(f"its pickle takes more than {steps(len(data))} steps")


def steps(size: int) -> int:
    """Return the number of opcodes that a file may have.

    It is enough for any file of tensors, and bounds the memory by that of the file.

    Args:
      size: the size of the whole file in bytes.
    """
    return STEPS + size // PER_STEP


class _Machine:
    """The state of the interpreter: a position, a stack with marks, and a memo."""

    def __init__(self, data: bytes, start: int, allows: Callable[[Name], None]) -> None:
        self.data, self.at, self.allows = data, start, allows
        self.raw = 0  # bytes of the strings of bytes so far
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.data) - self.at:
            raise DamagedPickle("it ends in the middle of its pickle")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> Any:
        """Return the next number, in a layout of `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """Return the next line, without its end."""
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise DamagedPickle("a name in its pickle is not terminated")
        return self.take(end + 1 - self.at)[:-1].decode()

    def since_mark(self) -> list[Any]:
        """Pop what was pushed after the last mark."""
        mark = self.marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickle("a name in its pickle is not a text")
        self.allows(found := Name(module, name))
        self.stack.append(found)

    def call(self) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise DamagedPickle("it calls an object that is not a name")
        self.stack.append(Made(name, args))

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Made):
            raise DamagedPickle("it gives a state to an object without one")
        made.state = state

    def put_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1].items if isinstance(self.stack[-1], Made) else self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise DamagedPickle("it puts items into an object that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not isinstance(key, (str, int, float, type(None))) or (
                type(key) is int and abs(key) >= 2**63
            ):
                raise DamagedPickle("a key of a dictionary is neither text nor number")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise DamagedPickle("it appends to an object that is not a list")
        self.stack[-1].extend(values)

    def pop_last(self, count: int) -> list[Any]:
        """Pop the last `count` values; DamagedPickle if there are fewer."""
        if len(self.stack) < count:
            raise DamagedPickle("its pickle pops more than it pushed")
        found = self.stack[-count:]
        del self.stack[-count:]
        return found


def _long(machine: _Machine, size: int) -> int:
    if not 0 <= size <= LONG:
        raise DamagedPickle(f"an integer of {size} bytes")
    return int.from_bytes(machine.take(size), "little", signed=True)


def _text(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.take(m.number(layout)).decode())


def _bytes(layout: str) -> Callable[[_Machine], None]:
    def push(machine: _Machine) -> None:
        found = machine.take(machine.number(layout))
        machine.raw += len(found)
        machine.stack.append(found)

    return push


def _fixed(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.number(layout))


def _new(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(make())


def _put(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.memo.__setitem__(m.number(layout), m.stack[-1])


def _get(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.memo[m.number(layout)])


def _tuple(count: int) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(tuple(m.pop_last(count)))


_OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.stack.pop(),
    b"1": lambda m: m.since_mark(),
    b"2": lambda m: m.stack.append(m.stack[-1]),
    b"N": _new(lambda: None),
    b"\x88": _new(lambda: True),
    b"\x89": _new(lambda: False),
    b"J": _fixed("<i"),
    b"K": _fixed("<B"),
    b"M": _fixed("<H"),
    b"G": _fixed(">d"),
    b"\x8a": lambda m: m.stack.append(_long(m, m.number("<B"))),
    b"\x8b": lambda m: m.stack.append(_long(m, m.number("<i"))),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"\x8d": _text("<Q"),
    b"U": _text("<B"),  # (bytes of Python 2)
    b"T": _text("<I"),
    b"B": _bytes("<I"),
    b"C": _bytes("<B"),
    b"\x8e": _bytes("<Q"),
    b")": _new(tuple),
    b"]": _new(list),
    b"\x8f": _new(list),  # EMPTY_SET, whose order and repetitions do not matter here
    b"\x90": lambda m: m.append(m.since_mark()),  # ADDITEMS
    b"}": _new(dict),
    b"t": lambda m: m.stack.append(tuple(m.since_mark())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"l": lambda m: m.stack.append(m.since_mark()),
    b"a": lambda m: m.append(m.pop_last(1)),
    b"e": lambda m: m.append(m.since_mark()),
    b"s": lambda m: m.put_items(m.pop_last(2)),
    b"u": lambda m: m.put_items(m.since_mark()),
    b"q": _put("<B"),
    b"r": _put("<I"),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"h": _get("<B"),
    b"j": _get("<I"),
    b"c": lambda m: m.push_name(m.line(), m.line()),
    b"\x93": lambda m: m.push_name(*m.pop_last(2)),
    b"R": lambda m: m.call(),
    b"\x81": lambda m: m.call(),  # NEWOBJ
    b"b": lambda m: m.build(),
    b"Q": lambda m: m.stack.append(PersistentId(m.stack.pop())),
}
