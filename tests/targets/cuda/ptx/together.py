"""Instructions that access memory, or that the threads of a warp execute together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .values import DTYPES, Act, Array, PtxError

WARP = 32


def _width(parts: Sequence[str]) -> int:
    return next((int(part[1:]) for part in parts if part in ("v2", "v4")), 1)


def _listed(operand: Any) -> list[str]:
    return operand if isinstance(operand, list) else [operand]


def _expect_aligned(addresses: Array, count: int, opcode: str) -> None:
    if (addresses % count).any():
        raise PtxError(f"misaligned: an address is no multiple of {count}")


def load(opcode: str, operands: Sequence[Any]) -> Act:
    parts, (target, source) = opcode.split("."), operands
    type_, targets = parts[-1], _listed(target)
    if parts[1] == "param":
        return lambda machine, lanes: machine.threads.write(
            target, lanes, np.full(len(lanes), machine.parameters[source]).astype(DTYPES[type_])
        )
    size = DTYPES[type_].itemsize
    count = size * _width(parts)

    def act(machine: Any, lanes: Array) -> None:
        addresses = machine.threads.read(source, "u32" if parts[1] == "shared" else "u64", lanes)
        _expect_aligned(addresses, count, opcode)
        if parts[1] == "shared":
            data = machine.shared.read(addresses, count, lanes)
        else:
            data = machine.memory.read(addresses, count, read_only="nc" in parts)
        values = np.ascontiguousarray(data).view(DTYPES[type_])
        for one, column in zip(targets, values.T, strict=True):
            machine.threads.write(one, lanes, column)

    return act


def store(opcode: str, operands: Sequence[Any]) -> Act:
    parts, (target, source) = opcode.split("."), operands
    type_, sources = parts[-1], _listed(source)
    size = DTYPES[type_].itemsize

    def act(machine: Any, lanes: Array) -> None:
        addresses = machine.threads.read(target, "u32" if parts[1] == "shared" else "u64", lanes)
        _expect_aligned(addresses, size * _width(parts), opcode)
        values = np.stack([machine.threads.read(one, type_, lanes) for one in sources], axis=1)
        data = np.ascontiguousarray(values).view(np.uint8)
        if parts[1] == "shared":
            machine.shared.write(addresses, data, lanes)
        else:
            machine.memory.write(addresses, data)

    return act


def copy(opcode: str, operands: Sequence[Any]) -> Act:
    """cp.async: the bytes arrive at the latest moment that a wait allows."""
    target, source, size, *read = operands
    count = int(size)

    def act(machine: Any, lanes: Array) -> None:
        threads = machine.threads
        to, from_ = threads.read(target, "u32", lanes), threads.read(source, "u64", lanes)
        given = threads.read(read[0], "u32", lanes) if read else np.full(len(lanes), count)
        _expect_aligned(to, count, opcode)
        _expect_aligned(from_, count, opcode)
        machine.shared.begin_copy(to, count, lanes)
        for lane, at, begin, some in zip(lanes, to, from_, given, strict=True):
            data = np.zeros(count, np.uint8)
            if some:
                data[:some] = machine.memory.read(np.array([begin]), int(some))[0]
            machine.copies[lane].append((machine.groups[lane], int(at), data))

    return act


def commit(opcode: str, operands: Sequence[Any]) -> Act:
    def act(machine: Any, lanes: Array) -> None:
        machine.groups[lanes] += 1

    return act


def wait(opcode: str, operands: Sequence[Any]) -> Act:
    allowed = int(operands[0]) if operands else -1  # wait_all also waits for copies that were not committed

    def act(machine: Any, lanes: Array) -> None:
        for lane in lanes:
            before = machine.groups[lane] - allowed
            due = [copy for copy in machine.copies[lane] if copy[0] < before]
            machine.copies[lane] = [copy for copy in machine.copies[lane] if copy[0] >= before]
            for _, at, data in due:
                machine.shared.end_copy(at, data, lane)

    return act


def shuffle(opcode: str, operands: Sequence[Any]) -> Act:
    """shfl.sync (PTX ISA): a lane that would read outside of its segment gets its own value."""
    kind = opcode.split(".")[2]
    (target, *inside), source, offset, clamp, _ = operands[0].split("|"), *operands[1:]

    def act(machine: Any, lanes: Array) -> None:
        threads, lane = machine.threads, lanes % WARP
        values, by = threads.read(source, "b32", lanes), threads.read(offset, "u32", lanes).astype(np.int64)
        packed = threads.read(clamp, "u32", lanes).astype(np.int64)
        segment, bound = packed >> 8 & 31, packed & 31
        most = (lane & segment) | (bound & ~segment)
        least = lane & segment
        other = {
            "up": lane - by,
            "down": lane + by,
            "bfly": lane ^ by,
            "idx": least | (by & ~segment & 31),
        }[kind]
        valid = other >= most if kind == "up" else other <= most
        other = np.where(valid, other, lane)
        everyone = np.zeros(threads.count, np.uint32)
        everyone[lanes] = values
        place = lanes // WARP * WARP + other
        if not np.isin(place, lanes).all():
            raise PtxError("a shuffle reads from a lane that does not take part")
        threads.write(target, lanes, everyone[place])
        for one in inside:
            threads.write(one, lanes, valid)

    return act


def vote(opcode: str, operands: Sequence[Any]) -> Act:
    kind = opcode.split(".")[2]
    target, predicate, _ = operands

    def act(machine: Any, lanes: Array) -> None:
        negated = predicate.startswith("!")
        says = machine.threads.read(predicate.lstrip("!"), "pred", lanes) != negated
        for warp in np.unique(lanes // WARP):
            mine = lanes[lanes // WARP == warp]
            given = says[lanes // WARP == warp]
            ballot = int((given.astype(np.uint64) << (mine % WARP).astype(np.uint64)).sum())
            result = {"ballot": np.uint32(ballot), "any": given.any(), "all": given.all()}[kind]
            machine.threads.write(target, mine, np.full(len(mine), result))

    return act


def reduce_warp(opcode: str, operands: Sequence[Any]) -> Act:
    _, _, kind, dtype = opcode.split(".")
    target, source, _ = operands
    reduce = {"min": np.min, "max": np.max}[kind]

    def act(machine: Any, lanes: Array) -> None:
        given = machine.threads.read(source, dtype, lanes)
        for warp in np.unique(lanes // WARP):
            mine = lanes // WARP == warp
            machine.threads.write(target, lanes[mine], np.full(mine.sum(), reduce(given[mine])))

    return act


def warp_barrier(opcode: str, operands: Sequence[Any]) -> Act:
    return lambda machine, lanes: machine.shared.warp_barrier(lanes)


def load_tiles(opcode: str, operands: Sequence[Any]) -> Act:
    """ldmatrix: lanes 8i to 8i + 7 point at the rows of tile i, and each lane gets two neighbouring numbers of it."""
    count, transposed = int(re.findall(r"\.x(\d)", opcode)[0]), ".trans" in opcode
    targets, address = _listed(operands[0]), operands[1]

    def act(machine: Any, lanes: Array) -> None:
        for warp in np.unique(lanes // WARP):
            mine = lanes[lanes // WARP == warp]
            pointing = mine[: 8 * count]
            addresses = machine.threads.read(address, "u32", pointing)
            _expect_aligned(addresses, 16, opcode)
            rows = np.ascontiguousarray(machine.shared.read(addresses, 16, pointing)).view(np.uint16)
            for tile, target in zip(rows.reshape(count, 8, 8), targets, strict=True):
                numbers = np.ascontiguousarray((tile.T if transposed else tile).reshape(32, 2))
                machine.threads.write(target, mine, numbers.view(np.uint32)[:, 0])

    return act


_MMA = re.compile(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(f16|bf16|tf32|e4m3)\.\2\.f32")
_FORMATS: dict[str, Any] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "tf32": np.float32,
    "e4m3": ml_dtypes.float8_e4m3fn,
}


def multiply(opcode: str, operands: Sequence[Any]) -> Act:
    """mma, with the layouts of PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type", for .m16n8k8 with
    .tf32, and for .m16n8k32."""
    match = _MMA.fullmatch(opcode)
    if match is None:
        raise PtxError(
            "not known to the interpreter; expected m16n8k16 of f16 or bf16, m16n8k8 of tf32, or m16n8k32 of e4m3"
        )
    format_ = _FORMATS[match[2]]
    per, lane = 4 // np.dtype(format_).itemsize, np.arange(WARP)
    column = (lane % 4)[:, None] * per + np.arange(per)
    d, a, b, c = operands

    def numbers(machine: Any, register: str, mine: Array) -> Array:
        bits = np.ascontiguousarray(machine.threads.read(register, "b32", mine))
        return bits.view(format_).reshape(WARP, per).astype(np.float32)

    def act(machine: Any, lanes: Array) -> None:
        for warp in np.unique(lanes // WARP):
            mine = lanes[lanes // WARP == warp]
            left, right = np.zeros((16, 8 * per), np.float32), np.zeros((8 * per, 8), np.float32)
            for i, register in enumerate(a):
                left[(lane // 4 + i % 2 * 8)[:, None], column + i // 2 * 4 * per] = numbers(machine, register, mine)
            for i, register in enumerate(b):
                right[column + i * 4 * per, (lane // 4)[:, None]] = numbers(machine, register, mine)
            product = left @ right
            for i, (target, addend) in enumerate(zip(d, c, strict=True)):
                sums = product[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2]
                machine.threads.write(target, mine, sums + machine.threads.read(addend, "f32", mine))

    return act


TOGETHER: tuple[tuple[re.Pattern[str], Callable[[str, Sequence[Any]], Act]], ...] = tuple(
    (re.compile(pattern), make)
    for pattern, make in (
        (r"ld\.(?:param|shared|global)\..*", load),
        (r"st\.(?:shared|global)\..*", store),
        (r"cp\.async\.c[ag]\.shared\.global.*", copy),
        (r"cp\.async\.commit_group", commit),
        (r"cp\.async\.wait_(?:group|all)", wait),
        (r"shfl\.sync\..*", shuffle),
        (r"vote\.sync\..*", vote),
        (r"redux\.sync\.(?:min|max)\.[su]32", reduce_warp),
        (r"bar\.warp\.sync", warp_barrier),
        (r"ldmatrix\.sync\.aligned\.m8n8\..*", load_tiles),
        (r"mma\.sync\..*", multiply),
    )
)
