"""Collectives and memory traffic of a compiled program, read from its text (HLO), with loops counted.

A loop over layers is one instruction `while` of the text, whose body runs as often as there are layers. XLA's own cost
analysis counts a body once; here every instruction counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # others end with their number of bits, or begin with f8, f4
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]((?:\{[^{}]*\})?)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
# Instructions that move no data by themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota", "optimization-barrier", "domain", "get-dimension-size", "add-dependency"),
}


class Instruction(NamedTuple):
    """One line of a program: `%name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest)])


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication between devices.

    Attributes:
        kind: one of `KINDS`.
        bytes: size on one device of the whole array: the array that is summed (all-reduce), the gathered result, the
            array before it is summed and split (reduce-scatter), the array that is exchanged (all-to-all) or sent.
        groups: int [groups, devices of a group], the devices that communicate; a permutation has pairs [senders, 2].
        count: how often it runs in a call of the program.
        op: where the program asked for it, the `op_name` of its metadata.
    """

    kind: str
    bytes: int
    groups: np.ndarray
    count: int
    op: str = ""

    @property
    def size(self) -> int:
        """Number of devices of a group."""
        return self.groups.shape[1]

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all runs by the algorithm with the fewest (a ring, for example)."""
        if self.kind == "collective-permute":
            share = float((self.groups[:, 0] != self.groups[:, 1]).any())
        else:
            share = (self.size - 1) / self.size * (2 if self.kind == "all-reduce" else 1)
        return share * self.bytes * self.count

    def axes(self, shape: Mapping[str, int]) -> tuple[str, ...]:
        """The mesh axes along which it communicates; `shape` is {mesh axis: number of devices}, in order."""
        places = np.stack(np.unravel_index(self.groups, tuple(shape.values())))  # [axes, groups, devices]
        moves = (places != places[:, :, :1]).any(axis=(1, 2))
        return tuple(axis for axis, moved in zip(shape, moves) if moved)

    def crosses(self, owners: np.ndarray) -> bool:
        """Returns True if devices of different owners (hosts, slices) communicate; `owners` is [devices]."""
        of = owners[self.groups]
        return bool((of != of[:, :1]).any())


class Sum(NamedTuple):
    """Collectives of one kind: how often they run in a call of the program, and the bytes that a device sends."""

    runs: int
    sent: float


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed program.

    Attributes:
        computations: name -> instructions.
        entry: name of the computation that is called.
        devices: number of devices that run it.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    devices: int = 1

    @functools.cached_property
    def fused(self) -> set[str]:
        """Names of the computations that are fused to one instruction."""
        fusions = (i for computation in self.computations.values() for i in computation if i.opcode == "fusion")
        return {called for fusion in fusions for _, called in _called(fusion)}

    @functools.cached_property
    def runs(self) -> dict[str, dict[str, int]]:
        """{computation: {loop body around it, or the entry: number of runs}}, of all that a call reaches."""
        out: dict[str, dict[str, int]] = {}

        def visit(name: str, loop: str, count: int) -> None:
            out.setdefault(name, {})
            out[name][loop] = out[name].get(loop, 0) + count
            for instruction in self.computations.get(name, ()):
                for role, called in _called(instruction):
                    body = role == "body"
                    times = count * trip_count(self, name, instruction) if body else count
                    visit(called, called if body else loop, times)

        visit(self.entry, self.entry, 1)
        return out


def parse(text: str) -> Module:
    """Parses the text of a compiled program (`compiled.as_text()`)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    header = text.partition("\n")[0]
    devices = math.prod(int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header))
    for line in text.splitlines():
        if (head := _COMPUTATION.match(line)) and " = " not in line.split("(")[0]:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(Instruction(*found.groups()))
        elif re.match(r"\}(,|$)", line):  # a line "}}, ..." ends the description of a kernel, not the computation
            current = None
    return Module(computations, entry, devices)


def trip_count(module: Module, computation: str, loop: Instruction) -> int:
    """Number of runs of the body of a `while`, as the compiler noted it, or from its condition `i < constant`.

    1 if neither tells: a loop that ends by its data.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(known[1])
    condition = dict(_called(loop)).get("condition", "")
    inside = {i.name: i for i in module.computations.get(condition, ())}
    for test in inside.values():
        if test.opcode != "compare" or "direction=LT" not in test.rest or len(test.operands) != 2:
            continue
        index, bound = (_source(inside, name) for name in test.operands)
        if index and bound and index.opcode == "get-tuple-element" and (end := _constant(bound)) is not None:
            position = int(re.search(r"index=(\d+)", index.rest)[1])  # type: ignore[index]
            return max(1, end - _start(module, computation, loop, position))
    return 1


def collectives(module: Module) -> list[Collective]:
    """The collectives of a program, in the order of its text; each counts as often as its loop runs."""
    found: dict[tuple[str, str], Collective] = {}
    for name, runs in module.runs.items():
        for instruction in module.computations.get(name, ()):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            groups = replica_groups(instruction.rest, module.devices)
            if groups is None or groups.shape[1] < 2:
                continue
            fused = kind == "all-reduce" and name.startswith("all-reduce-scatter")  # TPU: its result is sliced
            size = _payload(instruction) * (groups.shape[1] if kind == "reduce-scatter" else 1)
            # A collective that a TPU spreads over several fusions, to overlap it, is in each with the same channel.
            # Elsewhere, collectives may share a channel.
            channel = re.search(r"channel_id=(\d+)", instruction.rest) if name in module.fused and not fused else None
            op = re.search(r'op_name="([^"]*)"', instruction.rest)
            for loop, count in runs.items():
                key = (loop, f"channel {channel[1]}" if channel else f"{name}/{instruction.name}")
                named = "reduce-scatter" if fused else kind
                found.setdefault(key, Collective(named, size, groups, count, op[1] if op else ""))
    return list(found.values())


def by_kind(found: Sequence[Collective], shape: Mapping[str, int]) -> dict[tuple[str, tuple[str, ...]], Sum]:
    """Sums over collectives of the same kind and mesh axes, the most bytes first.

    Args:
        found: collectives.
        shape: {mesh axis: number of devices}, in the order of the mesh.
    """
    sums: dict[tuple[str, tuple[str, ...]], Sum] = {}
    for collective in found:
        key = (collective.kind, collective.axes(shape))
        so_far = sums.get(key, Sum(0, 0.0))
        sums[key] = Sum(so_far.runs + collective.count, so_far.sent + collective.sent)
    return dict(sorted(sums.items(), key=lambda item: -item[1].sent))


def traffic(module: Module) -> float:
    """Bytes that the program reads from and writes to the main memory of a device.

    Operands and results of instructions that are not fused. Of an operand that a fusion slices, and of a result that it
    updates in place, the slice counts. Arrays in the fast memory of a TPU, `S(1)`, count nothing.
    """
    control = ("while", "call", "conditional", "async-start")
    inside = {
        called
        for computation in module.computations.values()
        for i in computation
        if i.opcode not in control
        for _, called in _called(i)
    }  # fusions and reductions
    total = 0.0
    for name, runs in module.runs.items():
        if name in inside:
            continue
        instructions = {i.name: i for i in module.computations.get(name, ())}
        moved = sum(_moved(module, instructions, i) for i in instructions.values())
        total += moved * sum(runs.values())
    return total


def replica_groups(text: str, devices: int) -> np.ndarray | None:
    """The devices that communicate, int [groups, devices of a group], from the attributes of a collective.

    Written as {{0,1},{2,3}}, as [2,2]<=[4], as [2,2]<=[2,2]T(1,0), or by axes of a mesh; of a permutation, the pairs of
    sender and receiver. No group, {}, is one of all devices. None: not a collective.

    Args:
        text: attributes of an instruction.
        devices: number of devices that run the program.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        return np.array(re.findall(r"\{(\d+),(\d+)\}", pairs[1]), int).reshape(-1, 2)
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", text):
        return np.array([[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    if iota := re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[2].removeprefix("<="), iota[1])
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([\d,]*\))?)\))? \{([^}]*)\}", text
    ):
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    return np.arange(devices)[None] if "replica_groups={}" in text else None


def _mesh_groups(axes: str, order: str | None, chosen: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    shape = tuple(sizes.values())
    ids = np.arange(math.prod(shape)) if not order else _order(order)
    # 'axis':(2)4 is a part of an axis: 4 devices, within it 2 parts lie outside of it.
    picked = {n: (int(a or 1), int(b or 0)) for n, a, b in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)}
    split: list[int] = []
    inside: list[bool] = []
    for name, size in sizes.items():
        before, part = picked.get(name, (1, 0))
        part = part or (size if name in picked else 1)
        split += [before, part, size // (before * part)]
        inside += [False, name in picked, False]
    grid = ids.reshape(split)
    outer = [d for d, chosen_axis in enumerate(inside) if not chosen_axis]
    inner = [d for d, chosen_axis in enumerate(inside) if chosen_axis]
    return grid.transpose(*outer, *inner).reshape(-1, math.prod(split[d] for d in inner))


def _order(text: str) -> np.ndarray:
    return _iota(text, "-1").reshape(-1) if text.startswith("[") else np.array(re.findall(r"\d+", text), int)


def _iota(order: str, shape: str) -> np.ndarray:
    """[2,2,2]T(2,1,0): the numbers 0..7 as an array [2, 2, 2], transposed, then of the given shape."""
    dims = [int(d) for d in re.search(r"\[([\d,]+)\]", order)[1].split(",")]  # type: ignore[index]
    ids = np.arange(math.prod(dims)).reshape(dims)
    if moved := re.search(r"T\(([\d,]+)\)", order):
        ids = ids.transpose([int(d) for d in moved[1].split(",")])
    return ids.reshape([int(d) for d in shape.split(",")])


def array_bytes(shape: str, slow_memory: bool = False) -> int:
    """Bytes of the arrays of a shape, such as "(f32[8,4]{1,0}, s32[])".

    Args:
        shape: text of a shape.
        slow_memory: leave out arrays in the fast memory of a TPU.
    """
    return sum(
        math.prod(int(re.sub(r"\D", "", d)) for d in dims.split(",") if d) * _bits(dtype) // 8
        for dtype, dims, layout in _ARRAY.findall(shape)
        if not (slow_memory and re.search(r"S\([1-9]\)", layout))
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    if narrow := re.match(r"f([48])e", dtype):
        return int(narrow[1])
    bits = re.search(r"(\d+)$", dtype)
    return int(bits[1]) if bits else 0


def _payload(instruction: Instruction) -> int:
    """Bytes of the result of a collective; of a start form, whose shape has the operands too, of its result."""
    shape = instruction.shape
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        shape = _elements(shape)[1]
    return array_bytes(shape)


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape."""
    depth, parts = 0, [""]
    for c in shape[1:-1]:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _closing(text: str) -> int:
    """Position of the parenthesis that closes the operands."""
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return i
    return len(text)


def _called(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """Yields (role, name) of the computations that an instruction calls."""
    yield from _CALLED.findall(instruction.rest)
    for names in _BRANCHES.findall(instruction.rest):
        for name in re.findall(r"%?([\w.\-]+)", names):
            yield "branch", name


def _source(instructions: Mapping[str, Instruction], name: str) -> Instruction | None:
    """The instruction that made a value, before copies."""
    found = instructions.get(name)
    while found and found.opcode in ("copy", "bitcast", "convert") and found.operands[0] in instructions:
        found = instructions[found.operands[0]]
    return found


def _constant(instruction: Instruction) -> int | None:
    found = re.match(r"(-?\d+)\)", instruction.rest) if instruction.opcode == "constant" else None
    return int(found[1]) if found else None


def _start(module: Module, computation: str, loop: Instruction, position: int) -> int:
    """The first value of a loop's counter; 0 if it is not a constant."""
    around = {i.name: i for i in module.computations[computation]}
    carry = around.get(loop.operands[0])
    if carry is None or carry.opcode != "tuple":
        return 0
    first = _source(around, carry.operands[position])
    return (_constant(first) or 0) if first else 0


def _moved(module: Module, instructions: Mapping[str, Instruction], instruction: Instruction) -> float:
    """Bytes that one instruction reads and writes."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    result = array_bytes(instruction.shape, slow_memory=True)
    if opcode.endswith("-start"):
        return result  # the shape has operands and results
    shapes = [instructions[name].shape if name in instructions else "" for name in instruction.operands]
    reads = [array_bytes(shape, slow_memory=True) for shape in shapes]
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * reads[1]
    if opcode == "fusion":
        body = module.computations.get(dict(_called(instruction)).get("calls", ""), [])
        return _fusion(body, reads, result)
    return sum(reads) + result


def _fusion(body: list[Instruction], reads: list[int], result: float) -> float:
    """Bytes that a fusion reads and writes."""
    users: dict[str, list[Instruction]] = {}
    for i in body:
        for operand in i.operands:
            users.setdefault(operand, []).append(i)
    updated: set[str] = set()
    for update in (i for i in body if i.opcode == "dynamic-update-slice"):
        size = array_bytes(update.shape)
        result -= min(result, size - array_bytes(next(i.shape for i in body if i.name == update.operands[1])))
        updated.add(update.operands[0])
    total = result
    for parameter in (i for i in body if i.opcode == "parameter"):
        number = int(re.match(r"\d+", parameter.rest)[0])  # type: ignore[index]
        if number >= len(reads) or not reads[number]:
            continue
        uses = _uses(users, parameter.name)
        if uses and all(u.opcode in ("dynamic-slice", "gather", "slice") for u in uses):
            total += min(reads[number], sum(array_bytes(u.shape) for u in uses))
        elif not (uses and all(u.opcode == "dynamic-update-slice" for u in uses)):
            total += reads[number]
    return total


def _uses(users: Mapping[str, list[Instruction]], name: str) -> list[Instruction]:
    """The instructions that read a value, also through bitcasts."""
    out: list[Instruction] = []
    for user in users.get(name, ()):
        out += _uses(users, user.name) if user.opcode == "bitcast" else [user]
    return out
