"""Instructions of compute capability 9.0a: barriers in shared memory, the tensor memory accelerator (TMA), and products
of warpgroups.

Asynchronous work completes at the latest possible moment: products when they are waited for, TMA's boxes when no thread
can continue. On an eager machine boxes arrive at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .memory import SHARED_START
from .values import Act, Array, PtxError

GROUP = 128
_ROW_BYTES = 128
_PRODUCT = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(f16|bf16)\.\2")
_FORMATS: dict[str, Any] = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A tensor map of matrices [E, R, C] of 16-bit numbers. TMA copies boxes of ``rows`` rows of 128 bytes, in the
    128-byte swizzle."""

    matrix: Array
    rows: int

    def box(self, column: int, row: int, expert: int) -> Array:
        """The bytes of a box, [rows, 128]; zeros outside of the matrix."""
        columns = _ROW_BYTES // 2
        box = np.zeros((self.rows, columns), np.uint16)
        inside = self.matrix[expert].view(np.uint16)[row : row + self.rows, column : column + columns]
        box[: inside.shape[0], : inside.shape[1]] = inside
        return box.view(np.uint8)


@dataclasses.dataclass
class MemoryBarrier:
    count: int
    pending: int
    initialised_by: int
    epoch: int
    """The block's epoch when the barrier was initialised."""
    bytes: int = 0
    phase: int = 0
    published: bool = False


def swizzled(addresses: Array) -> Array:
    return addresses ^ (addresses >> 3 & 0x70)


def _barrier(machine: Any, address: int, lane: int) -> MemoryBarrier:
    if address not in machine.barriers:
        raise PtxError(f"byte {address - SHARED_START} of shared memory holds no mbarrier")
    barrier: MemoryBarrier = machine.barriers[address]
    if lane != barrier.initialised_by and machine.shared.epoch == barrier.epoch:
        raise PtxError("race: an mbarrier that another thread has initialised, and no barrier lies between")
    return barrier


def _end_phase_if_complete(machine: Any, barrier: MemoryBarrier) -> None:
    if barrier.pending < 0:
        raise PtxError("more arrivals than the mbarrier was initialised for")
    if barrier.pending == 0 and barrier.bytes == 0:
        barrier.phase ^= 1
        barrier.pending = barrier.count
        machine.shared.barrier()
        machine.wake()


def initialise(opcode: str, operands: Sequence[Any]) -> Act:
    def act(machine: Any, lanes: Array) -> None:
        addresses, counts = (machine.threads.read(one, "u32", lanes) for one in operands)
        for lane, address, count in zip(lanes, addresses, counts, strict=True):
            machine.barriers[int(address)] = MemoryBarrier(int(count), int(count), int(lane), machine.shared.epoch)

    return act


def arrive(opcode: str, operands: Sequence[Any]) -> Act:
    _, address, number = operands

    def act(machine: Any, lanes: Array) -> None:
        addresses, numbers = (machine.threads.read(one, "u32", lanes) for one in (address, number))
        for lane, at, count in zip(lanes, addresses, numbers, strict=True):
            barrier = _barrier(machine, int(at), lane)
            announces = "expect_tx" in opcode
            barrier.bytes += int(count) if announces else 0
            barrier.pending -= 1 if announces else int(count)
            _end_phase_if_complete(machine, barrier)

    return act


def wait_for_phase(opcode: str, operands: Sequence[Any]) -> Act:
    done, address, parity = operands[:3]

    def act(machine: Any, lanes: Array) -> None:
        addresses, parities = (machine.threads.read(one, "u32", lanes) for one in (address, parity))
        phases = [_barrier(machine, int(at), lane).phase for lane, at in zip(lanes, addresses, strict=True)]
        ended = np.array(phases) != (parities & 1)
        machine.threads.write(done, lanes, ended)
        machine.hold(lanes[~ended])

    return act


def publish(opcode: str, operands: Sequence[Any]) -> Act:
    """fence.mbarrier_init, and fence.proxy.async, which also makes writes visible to TMA and wgmma."""

    def act(machine: Any, lanes: Array) -> None:
        for barrier in machine.barriers.values():
            barrier.published |= barrier.initialised_by in lanes
        if "proxy" in opcode:
            machine.shared.publish(lanes)

    return act


def load_box(opcode: str, operands: Sequence[Any]) -> Act:
    target, (tensor, start), barrier = operands

    def act(machine: Any, lanes: Array) -> None:
        for lane in lanes:
            one = np.array([lane])
            to, at = (int(machine.threads.read(name, "u32", one)[0]) for name in (target, barrier))
            place = (int(machine.threads.read(name, "s32", one)[0]) for name in start)
            data = machine.maps[int(machine.threads.read(tensor, "u64", one)[0])].box(*place)
            if to % _ROW_BYTES:
                raise PtxError(f"misaligned: shared address {to} is no multiple of {_ROW_BYTES}")
            found = _barrier(machine, at, lane)
            if not found.published:
                raise PtxError("the mbarrier was initialised without fence.mbarrier_init behind it")
            addresses = swizzled(to + np.arange(data.size))
            machine.shared.begin_copy(np.array([to]), data.size, one)

            def complete(addresses: Array = addresses, data: Array = data, found: MemoryBarrier = found) -> None:
                machine.shared.end_box(addresses, data.reshape(-1))
                found.bytes -= data.size
                _end_phase_if_complete(machine, found)

            if machine.eager:
                complete()
            else:
                machine.boxes.append(complete)

    return act


def _operand(machine: Any, descriptor: int, rows: int, format_: Any) -> tuple[Array, Array]:
    """The numbers [rows, 16] of an operand in shared memory, and the places of their bytes."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    if descriptor >> 62 != 1:
        raise PtxError("a descriptor without the 128-byte swizzle is not known to the interpreter")
    row = np.arange(rows)[:, None]
    addresses = swizzled(start + row // 8 * stride + row % 8 * _ROW_BYTES + np.arange(32))
    places = addresses - SHARED_START
    return machine.shared.data[places].view(format_).astype(np.float32), places


def _transposed_operand(machine: Any, descriptor: int, columns: int, format_: Any) -> tuple[Array, Array]:
    """The numbers [columns, 16] of an operand in shared memory in which columns are consecutive, and the places of
    their bytes."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 62 != 1:
        raise PtxError("a descriptor without the 128-byte swizzle is not known to the interpreter")
    depth, byte = np.arange(16)[:, None], np.arange(columns * 2)
    row = start + depth // 8 * stride + depth % 8 * _ROW_BYTES
    places = swizzled(row + byte // _ROW_BYTES * leading + byte % _ROW_BYTES) - SHARED_START
    return machine.shared.data[places].view(format_).astype(np.float32).T, places


def _register_operand(machine: Any, registers: Sequence[str], lanes: Array, format_: Any) -> Array:
    """The numbers [64, 16] of an operand in registers: a thread has two numbers in each of four registers."""
    thread, numbers = np.arange(GROUP), np.empty((64, 16), np.float32)
    for i, register in enumerate(registers):
        row = thread // 32 * 16 + thread % 32 // 4 + i % 2 * 8
        column = (i // 2 * 4 + thread % 4) * 2
        pairs = machine.threads.read(register, "u32", lanes).astype(np.uint32)
        for half in range(2):
            numbers[row, column + half] = (pairs >> 16 * half).astype(np.uint16).view(format_)
    return numbers


def multiply(opcode: str, operands: Sequence[Any]) -> Act:
    """wgmma: registers, too, are read only when the product completes. So changing them before the wait changes the
    product."""
    found, in_registers = _PRODUCT.fullmatch(opcode), isinstance(operands[1], list)
    orders = ("0",) if in_registers else ("0", "0")
    if found is None or operands[4:6] != ("1", "1") or operands[6:] not in (orders, (*orders[:-1], "1")):
        raise PtxError("not known to the interpreter; expected m64nNk16 of f16 or bf16, A not transposed")
    columns, format_ = int(found[1]), _FORMATS[found[2]]
    sums, left, right, adds = operands[:4]
    read_right = _transposed_operand if operands[-1] == "1" else _operand
    thread = np.arange(GROUP)

    def issue(machine: Any, lanes: Array) -> None:
        threads, one, group = machine.threads, lanes[:1], int(lanes[0]) // GROUP
        if not machine.fenced[group]:
            raise PtxError("without a wgmma.fence before it")
        a = 0 if in_registers else int(threads.read(left, "u64", one)[0])
        b, add = int(threads.read(right, "u64", one)[0]), bool(threads.read(adds, "pred", one)[0])
        places = [] if in_registers else [_operand(machine, a, 64, format_)[1]]
        places.append(read_right(machine, b, columns, format_)[1])
        for some in places:
            machine.shared.begin_use(some)

        def complete() -> None:
            rows = (
                _register_operand(machine, left, lanes, format_)
                if in_registers
                else _operand(machine, a, 64, format_)[0]
            )
            product = rows @ read_right(machine, b, columns, format_)[0].T
            for i, register in enumerate(sums):
                mine = product[
                    thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8, i // 4 * 8 + thread % 4 * 2 + i % 2
                ]
                threads.write(register, lanes, mine + threads.read(register, "f32", lanes) if add else mine)
            for some in places:
                machine.shared.end_use(some)

        machine.products[group].append((machine.product_groups[group], complete))

    def act(machine: Any, lanes: Array) -> None:
        for group in np.unique(lanes // GROUP):
            issue(machine, lanes[lanes // GROUP == group])

    return act


def commit_products(opcode: str, operands: Sequence[Any]) -> Act:
    def act(machine: Any, lanes: Array) -> None:
        machine.product_groups[np.unique(lanes // GROUP)] += 1

    return act


def wait_for_products(opcode: str, operands: Sequence[Any]) -> Act:
    def act(machine: Any, lanes: Array) -> None:
        for group in np.unique(lanes // GROUP):
            before = machine.product_groups[group] - int(operands[0])
            due = [complete for number, complete in machine.products[group] if number < before]
            machine.products[group] = [one for one in machine.products[group] if one[0] >= before]
            for complete in due:
                complete()

    return act


def fence_registers(opcode: str, operands: Sequence[Any]) -> Act:
    def act(machine: Any, lanes: Array) -> None:
        machine.fenced[np.unique(lanes // GROUP)] = True

    return act


def change_register_count(opcode: str, operands: Sequence[Any]) -> Act:
    """setmaxnreg: does nothing, since the interpreter has no limit of registers; the emulator checks their number."""
    return lambda machine, lanes: None


def depend_on_kernels(opcode: str, operands: Sequence[Any]) -> Act:
    """griddepcontrol: does nothing, since kernels run one after another; the emulator checks that each thread waits."""
    return lambda machine, lanes: None


HOPPER: tuple[tuple[re.Pattern[str], Callable[[str, Sequence[Any]], Act]], ...] = tuple(
    (re.compile(pattern), make)
    for pattern, make in (
        (r"mbarrier\.init\.shared(?:::cta)?\.b64", initialise),
        (r"mbarrier\.arrive(?:\.expect_tx)?\.shared(?:::cta)?\.b64", arrive),
        (r"mbarrier\.try_wait\.parity\..*", wait_for_phase),
        (r"fence\.mbarrier_init\.release\.cluster|fence\.proxy\.async.*", publish),
        (r"cp\.async\.bulk\.tensor\.3d\.shared::cluster\.global\.mbarrier::complete_tx::bytes", load_box),
        (r"wgmma\.mma_async\..*", multiply),
        (r"wgmma\.commit_group\.sync\.aligned", commit_products),
        (r"wgmma\.wait_group\.sync\.aligned", wait_for_products),
        (r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32", change_register_count),
        (r"griddepcontrol\.(?:wait|launch_dependents)", depend_on_kernels),
        (r"wgmma\.fence\.sync\.aligned", fence_registers),
    )
)
