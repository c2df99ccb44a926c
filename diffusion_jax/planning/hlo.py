"""Collectives and memory traffic of a compiled program, read from its text (HLO).

The text is that of compiled.as_text(). A program is a set of computations; a `while` runs its body
several times, a call or a fusion its computation once per visit. XLA's own cost_analysis counts
every loop body once; here loops are multiplied out. All numbers are those of one device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


# Instructions that move nothing by themselves; their arrays count where they are made or used.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
    "iota",
}

SLICES = ("dynamic-slice", "slice", "gather")
BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%?([\w.\-]+)")
_USES = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line: name = shape opcode(operands), attributes; shape is the text of a type."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class Program(NamedTuple):
    """Computations by name, each {name: instruction}, and the name of the one that runs."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: bytes of its result on a device.
      group: number of devices in each of its groups.
      times: how often it runs.
    """

    kind: str
    bytes: float
    group: int
    times: float

    def sent(self) -> float:
        """The least bytes that a device sends for one of it, by ring algorithms (Thakur 2005)."""
        n, size = max(self.group, 1), self.bytes
        return {
            "all-reduce": 2 * size * (n - 1) / n,
            "reduce-scatter": size * (n - 1),
            "collective-permute": size,
        }.get(self.kind, size * (n - 1) / n)


def parse(text: str) -> Program:
    """Parse the text of a compiled program.

    Args:
      text: the text; lines that are neither the head of a computation nor an instruction are
        skipped.
    """
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and "->" in line:
                name = _NAME.match(line.removeprefix("ENTRY ")).group(1)
                current = computations[name] = {}
                entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("}"):
            current = None
        elif (found := _instruction(line.strip().removeprefix("ROOT "))) is not None:
            current[found.name] = found
    return Program(computations, entry)


def collectives(program: Program, devices: int) -> list[Collective]:
    """The collectives of a program, with asynchronous ones and those inside fusions.

    TPUs hide a collective behind other work in a chain of fusions, each with a copy of it: the
    copies share a channel and count once. A fusion named all-reduce-scatter, of an all-reduce and a
    slice, is a reduce-scatter.

    Args:
      program: the program.
      devices: number of devices, the group of a collective that names none.
    """
    found, seen = [], set()
    for name, computation, times, fused in _visits(program):
        for one in computation.values():
            kind = one.opcode.removesuffix("-start")
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            if kind not in COLLECTIVES or (fused and channel and channel.group() in seen):
                continue
            if fused and channel:
                seen.add(channel.group())
            last = next(
                (
                    i
                    for i in computation.values()
                    if i.opcode == f"{kind}-done" and one.name in i.operands
                ),
                one,
            )
            if name.startswith("all-reduce-scatter"):
                kind, last = "reduce-scatter", next(reversed(computation.values()))
            found.append(
                Collective(kind, array_bytes(last.shape), _group(one.attributes, devices), times)
            )
    return found


def traffic(program: Program) -> float:
    """Bytes that are read from and written to the device's main memory.

    These are operands and results of every instruction that is not inside a fusion. What the
    compiler keeps in faster memory (a layout's S(n)) does not count; a slice counts as itself, not
    as the array it is cut from.

    Args:
      program: the program.
    """
    total = 0.0
    for _, computation, times, fused in _visits(program):
        if not fused:
            total += times * sum(_moved(one, computation, program) for one in computation.values())
    return total


def array_bytes(shape: str, *, main_memory: bool = False) -> float:
    """Bytes of all arrays in the text of a type.

    Args:
      shape: the text, such as 'f32[8,16]{1,0}' or a tuple of such.
      main_memory: leave out arrays in another memory space, S(n) in the layout.
    """
    arrays = _ARRAY.findall(shape)
    return sum(
        prod(map(int, dims.split(","))) * _bits(kind) / 8 if dims else _bits(kind) / 8
        for kind, dims, layout in arrays
        if not (main_memory and re.search(r"S\([1-9]", layout))
    )


def _bits(kind: str) -> int:
    return (
        BITS[kind]
        if kind in BITS
        else int(re.search(r"\d+", kind).group())
        if re.search(r"\d", kind)
        else 0
    )


def _moved(one: Instruction, computation: dict[str, Instruction], program: Program) -> float:
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0.0
    result = array_bytes(one.shape, main_memory=True)
    if one.opcode in SLICES:
        return 2 * result
    read = [
        array_bytes(computation[name].shape, main_memory=True) if name in computation else 0.0
        for name in one.operands
    ]
    if one.opcode == "dynamic-update-slice":  # in place
        return 2 * read[1]
    if one.opcode == "fusion":
        inside = program.computations.get(_called(one), {})
        read = [min(size, _read(inside, i, program)) for i, size in enumerate(read)]
        result = min(result, _written(inside, next(reversed(inside.values()), None), program))
    return sum(read) + (0.0 if one.opcode.endswith("-start") else result)


def _read(computation: dict[str, Instruction], parameter: int, program: Program) -> float:
    """Bytes that a fusion reads of its parameter; an update in place reads none of it."""
    own = next(
        (
            i
            for i in computation.values()
            if i.opcode == "parameter" and i.operands == (str(parameter),)
        ),
        None,
    )
    total = 0.0
    for user in computation.values() if own else ():
        for place in (i for i, name in enumerate(user.operands) if name == own.name):
            if user.opcode in SLICES and place == 0:
                total += array_bytes(user.shape)
            elif user.opcode == "fusion":
                total += _read(program.computations.get(_called(user), {}), place, program)
            elif not (user.opcode == "dynamic-update-slice" and place == 0):
                return float("inf")
    return total


def _written(
    computation: dict[str, Instruction], one: Instruction | None, program: Program
) -> float:
    """Bytes that a fusion with the root `one` writes; an update in place writes the update."""
    if one is None:
        return float("inf")
    parts = [computation.get(name) for name in one.operands]
    if one.opcode == "tuple":
        return sum(_written(computation, part, program) for part in parts)
    if one.opcode == "bitcast":
        return _written(computation, parts[0], program)
    if one.opcode == "dynamic-update-slice" and parts[1]:
        return array_bytes(parts[1].shape)
    return array_bytes(one.shape, main_memory=True)


def _visits(program: Program) -> Iterator[tuple[str, dict[str, Instruction], float, bool]]:
    """Walk over the computations that the entry reaches.

    Yields (name, computation, how often it runs, whether it is inside a fusion).
    """
    stack = [(program.entry, 1.0, False)]
    while stack:
        name, times, fused = stack.pop()
        computation = program.computations.get(name, {})
        yield name, computation, times, fused
        for one in computation.values():
            if one.opcode == "while":
                body, condition = (
                    re.search(rf"{key}=%?([\w.\-]+)", one.attributes).group(1)
                    for key in ("body", "condition")
                )
                stack.append(
                    (body, times * _trips(one, program.computations.get(condition, {})), fused)
                )
            elif one.opcode == "conditional":
                stack += [(branch, times, fused) for branch in _branches(one.attributes)]
            elif called := _called(one):
                stack.append((called, times, fused or one.opcode == "fusion"))


def _called(one: Instruction) -> str:
    """The computation of a fusion, a call or an asynchronous start; '' for other instructions."""
    found = re.search(r"calls=%?([\w.\-]+)", one.attributes)
    if one.opcode == "call":
        found = re.search(r"to_apply=%?([\w.\-]+)", one.attributes)
    return found.group(1) if found else ""


def _trips(loop: Instruction, condition: dict[str, Instruction]) -> int:
    """The number of iterations of a loop, from the compiler's note or its condition; else 1."""
    noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted.group(1))
    whole = (
        one
        for one in condition.values()
        if one.opcode == "constant" and one.shape.startswith(("s32", "u32", "s64"))
    )
    constants = [one.operands[0] for one in whole]
    return max((int(c) for c in constants if c.lstrip("-").isdigit()), default=1) or 1


def _branches(attributes: str) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    return (
        _USES.findall(listed.group(1))
        if listed
        else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", attributes)
    )


def _group(attributes: str, devices: int) -> int:
    """The size of replica_groups: {{0,1},{2,3}}, [2,4]<=[8] or mesh['a'=2,'b'=4] {'b'}."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found.group(2))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=@?mesh(\[[^\]]*\])[^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found.group(2))
        return prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _instruction(line: str) -> Instruction | None:
    """Parse a line; the operand of a constant is its value, that of a parameter its number."""
    name, equals, rest = line.partition(" = ")
    if not equals:
        return None
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, parenthesis, _ = rest.partition("(")
    if not parenthesis:
        return None
    inside = rest[len(opcode) : len(opcode) + _closing(rest[len(opcode) :]) + 1]
    operands = (
        (inside[1:-1],) if opcode in ("constant", "parameter") else tuple(_USES.findall(inside))
    )
    return Instruction(name.lstrip("%"), shape, opcode, operands, rest[len(opcode) + len(inside) :])


def _closing(text: str) -> int:
    """The index of the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return i
    return len(text) - 1
