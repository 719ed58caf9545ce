"""An interpreter of the PTX that nvcc compiles a kernel to. It complements the emulator, which runs the CUDA C.

Only the interpreter sees how the compiler treated inline assembly and its order, loads through the read-only cache
(``ld.global.nc``) of memory that the same launch writes, and actual addresses. An instruction is executed at once for
all threads that have reached it (:mod:`.values`, :mod:`.arithmetic`, :mod:`.together`). Blocks run one after another,
on one :mod:`.memory`.

Of a block's threads, those at the lowest address run until they wait, because compilers place code such that paths meet
again further down. A thread that spins until another one does something would therefore spin forever, except at
``mbarrier.try_wait``, which suspends it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moec.simulators.cuda.ptx import Instruction, Label, parse

from .arithmetic import arithmetic
from .hopper import GROUP, HOPPER, MemoryBarrier, TensorMap
from .memory import GlobalMemory, SharedMemory, layout
from .together import TOGETHER, WARP
from .values import Act, Array, PtxError, Threads

_BODY = re.compile(r"\.entry\s+\w+\((?P<parameters>.*?)\)(?P<directives>[^{]*)\{(?P<body>.*)\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align \d+ )?\.\w+\s+(\w+)")
_SHARED = re.compile(r"^\s*\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", re.MULTILINE)
_POOL = re.compile(r"\.extern \.shared \.align (\d+) \.b8 (\w+)\[\];")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([^;]+);")
_DIRECTIVE = re.compile(r"^\s*\.(?!reg).*$", re.MULTILINE)
_SCOPE = re.compile(r"\{\s*\.reg(?:[^{}]|\{[^{}]*\})*\}")
_SCOPED = re.compile(r"\.reg\s+\.\w+\s+([\w, ]+);|^\s*(\w+):", re.MULTILINE)
_MEETS = re.compile(r"(?:shfl|vote|redux|ldmatrix|mma|wgmma|bar\.warp)\b.*")
_MAPS = 1 << 60
"""The generic address of the first tensor map."""
_MOST_STEPS = 2_000_000
_AXES = "xyz"


@dataclasses.dataclass(frozen=True)
class _Step:
    instruction: Instruction
    act: Act | None
    target: int
    """The index of the step that a branch goes to."""


class Program:
    """A parsed kernel. Raises PtxError for an instruction that the interpreter does not know."""

    def __init__(self, text: str) -> None:
        match = _BODY.search(text)
        if match is None:
            raise PtxError("no kernel; expected the text of an .entry function")
        body = _apart(match["body"])
        self.parameters = _PARAMETER.findall(match["parameters"])
        self.arrays = {name: (int(alignment), int(count)) for alignment, name, count in _SHARED.findall(body)}
        self.pools = {name: int(alignment) for alignment, name in _POOL.findall(text)}
        self.types = {
            name.strip().lstrip("%").partition("<")[0]: type_
            for type_, names in _REGISTERS.findall(body)
            for name in names.split(",")
        }
        self.steps = self._compiled(body)

    def _compiled(self, body: str) -> list[_Step]:
        statements = parse(_DIRECTIVE.sub("", body))
        labels, instructions = dict[str, int](), list[Instruction]()
        for statement in statements:
            if isinstance(statement, Label):
                labels[statement.name] = len(instructions)
            elif isinstance(statement, Instruction):
                instructions.append(statement)
        return [
            _Step(one, _act_of(one), labels.get(str(one.operands[0]), -1) if one.operands else -1)
            for one in instructions
        ]


def _act_of(instruction: Instruction) -> Act | None:
    """The function that executes an instruction; None for those that the machine itself executes."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode in ("bra", "bra.uni", "ret", "exit", "bar.sync", "barrier.sync"):
        return None
    act = arithmetic(opcode, operands)
    if act is None:
        act = next(
            (make(opcode, operands) for pattern, make in (*TOGETHER, *HOPPER) if pattern.fullmatch(opcode)), None
        )
    if act is None:
        raise PtxError(f"{opcode}: the interpreter of PTX does not know it")
    return act


def _apart(body: str) -> str:
    """The text with unique names for the registers and labels of each scope; a scope is a piece of inline assembly."""
    numbers = itertools.count()

    def renamed(scope: re.Match[str]) -> str:
        number, text = next(numbers), scope[0]
        names = [name.strip() for match in _SCOPED.finditer(text) for name in (match[1] or match[2]).split(",")]
        for name in dict.fromkeys(names):
            text = re.sub(rf"\b{name}\b", f"{name}__{number}_", text)
        return text

    return _SCOPE.sub(renamed, body)


class Block:
    """The state of one block while its threads run."""

    def __init__(
        self,
        program: Program,
        memory: GlobalMemory,
        parameters: Mapping[str, Any],
        special: Mapping[str, Array],
        pool: int,
        eager: bool,
    ) -> None:
        symbols, before = layout(program.arrays, program.pools)
        maps = [name for name, value in parameters.items() if isinstance(value, TensorMap)]
        symbols |= {name: _MAPS + i for i, name in enumerate(maps)}
        self.maps = {_MAPS + i: parameters[name] for i, name in enumerate(maps)}
        count = len(special["%tid.x"])
        self.program, self.memory, self.parameters = program, memory, parameters
        self.threads = Threads(count, program.types, symbols, dict(special))
        self.shared = SharedMemory(before + pool, count)
        self.copies: list[list[tuple[int, int, Array]]] = [[] for _ in range(count)]
        self.groups = np.zeros(count, np.int64)
        self.barriers = dict[int, MemoryBarrier]()
        self.boxes: list[Callable[[], None]] = []
        self.products: list[list[tuple[int, Callable[[], None]]]] = [[] for _ in range(-(-count // GROUP))]
        self.product_groups, self.fenced = np.zeros(len(self.products), np.int64), np.zeros(len(self.products), bool)
        self._counter = np.zeros(count, np.int64)
        self._group, self.eager = np.arange(count) // GROUP, eager
        self._alive, self._held, self._waiting = np.ones(count, bool), np.zeros(count, bool), np.full(count, -1)

    def run(self) -> None:
        for _ in range(_MOST_STEPS):
            if not self._alive.any():
                return
            ready = self._alive & ~self._held & (self._waiting < 0)
            if not ready.any() and self.boxes:
                self.boxes.pop(0)()
                continue
            if not ready.any():
                raise PtxError("deadlock: " + ("lanes of a warp diverged" if self._held.any() else "at a barrier"))
            if self.eager:
                ready &= self._group == self._group[ready].max()
            place = int(self._counter[ready].min())
            there = self._alive & (self._waiting < 0) & (self._counter == place)
            lanes = np.flatnonzero(there & (self._group == self._group[ready][0]) if self.eager else there)
            self._step(self.program.steps[place], lanes)
        raise PtxError(f"more than {_MOST_STEPS} steps")

    def hold(self, lanes: Array) -> None:
        """Suspend threads at their current instruction until :meth:`wake`."""
        self._counter[lanes] -= 1
        self._held[lanes] = True

    def wake(self) -> None:
        self._held[:] = False

    def _step(self, step: _Step, lanes: Array) -> None:
        instruction = step.instruction
        if _MEETS.match(instruction.opcode):
            lanes = self._all_there(instruction, lanes)
            if not len(lanes):
                return
        self._counter[lanes] += 1
        acting = lanes
        if instruction.predicate is not None:
            says = self.threads.read(f"%{instruction.predicate}", "pred", lanes)
            acting = lanes[says != instruction.negated]
        try:
            if len(acting):
                self._carry_out(step, acting)
        except PtxError as error:
            operands = ", ".join(map(str, instruction.operands))
            raise PtxError(f"{instruction.opcode} {operands}: {error}") from error

    def _all_there(self, instruction: Instruction, lanes: Array) -> Array:
        """The lanes that can execute an instruction of a whole warp or warpgroup, because all of its named lanes that
        are alive have arrived. The others are suspended until theirs have."""
        if instruction.opcode.startswith("wgmma"):
            groups = lanes // GROUP
            complete = np.bincount(groups, minlength=len(self.products))[groups] == GROUP
            self._held[lanes] = ~complete
            return lanes[complete]
        whole = instruction.opcode.startswith(("ldmatrix", "mma"))
        masks = (
            np.full(len(lanes), 0xFFFFFFFF) if whole else self.threads.read(str(instruction.operands[-1]), "u32", lanes)
        )
        named = masks.astype(np.int64)[:, None] >> np.arange(WARP) & 1 == 1
        others = np.minimum(lanes[:, None] // WARP * WARP + np.arange(WARP), self.threads.count - 1)
        complete = (~named | ~self._alive[others] | np.isin(others, lanes)).all(axis=1)
        self._held[lanes] = ~complete
        return lanes[complete]

    def _carry_out(self, step: _Step, lanes: Array) -> None:
        opcode = step.instruction.opcode
        if step.act is not None:
            step.act(self, lanes)
        elif opcode.startswith("bra"):
            self._counter[lanes] = step.target
        elif opcode in ("ret", "exit"):
            self._alive[lanes] = False
            self._open_barriers({})
        else:
            number, *count = step.instruction.operands
            self._waiting[lanes] = int(str(number))
            self._open_barriers({int(str(number)): int(str(count[0]))} if count else {})

    def _open_barriers(self, counts: Mapping[int, int]) -> None:
        for number in np.unique(self._waiting[self._alive & (self._waiting >= 0)]):
            waiting = self._alive & (self._waiting == number)
            if waiting.sum() >= counts.get(int(number), int(self._alive.sum())):
                self._waiting[waiting] = -1
                self.shared.barrier()


def run(
    text: str, arguments: Sequence[Any], *, grid: int, block: int, pool_bytes: int = 0, eager: bool = False
) -> None:
    """Launch a kernel on numpy arrays, which it changes, and numbers, in the order of its parameters.

    ``eager``: TMA's boxes arrive at once, and of the warpgroups that can continue only the last one runs. Otherwise
    boxes arrive when no thread can continue, and all warpgroups run together.

    Raises PtxError, with the instruction, for traps of a GPU, races in shared memory, reads of memory that is still
    being copied to, read-only loads of memory that the launch writes, and unknown instructions.
    """
    program = Program(text)
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    memory, numbers = GlobalMemory(arrays), itertools.count()
    values = [memory.address(next(numbers)) if isinstance(one, np.ndarray) else one for one in arguments]
    parameters = dict(zip(program.parameters, values, strict=True))
    threads = np.arange(block)
    sizes = {
        f"%n{what}.{axis}": np.full(block, extent if axis == "x" else 1)
        for what, extent in (("tid", block), ("ctaid", grid))
        for axis in _AXES
    }
    for index in range(grid):
        special = {f"%tid.{axis}": threads if axis == "x" else threads * 0 for axis in _AXES}
        special |= {f"%ctaid.{axis}": np.full(block, index if axis == "x" else 0) for axis in _AXES}
        special |= {**sizes, "%laneid": threads % WARP}
        with np.errstate(all="ignore"):
            Block(program, memory, parameters, special, pool_bytes, eager).run()
