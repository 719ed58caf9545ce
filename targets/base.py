"""The interface of a target, which turns a model into a program and records why it chose each kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.kernel_structure import KernelStructure
from moec.common.mapped_files import release_pages
from moec.common.specs import HeldState, LastTokens, StreamedExpertsSpec, TensorSpec
from moec.common.work import SizedWork, WorkModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.targets.host_program import HostProgram


INSTRUCTIONS = "devc.o"
"""Object file of the virtual machine's instructions, as TVM calls it."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One kernel that was considered for a node. Of a record's candidates, exactly one is chosen."""

    kernel: str
    eligible: bool
    reason: str
    chosen: bool = False


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A tensor map: the description of a tensor from which a GPU's copy engine (TMA) copies. ``numbers``: the
    arguments of ``cuTensorMapEncodeTiled`` after the address, from the extents on, as C."""

    name: str
    tensor: str
    dtype: str
    rank: int
    numbers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SizeRange:
    """The sizes from ``least`` to ``most``, both included; None for no upper limit."""

    least: int = 0
    most: int | None = None

    def __str__(self) -> str:
        return f"from {self.least}" if self.most is None else f"{self.least} to {self.most}"

    def may_hold(self, size: int | None) -> bool:
        """Whether the size may be in the range. ``size``: None if it is not known at compile time."""
        return size is None or (self.least <= size and (self.most is None or size <= self.most))


@dataclasses.dataclass(frozen=True)
class LaunchCondition:
    """The condition that ``size``, a C expression, lies in the range ``sizes``, as it is estimated: bounds may be
    numbers that the host reads at run time. The range is empty where such a number has to differ from its estimate."""

    size: str
    sizes: SizeRange

    def __str__(self) -> str:
        least, most = self.sizes.least, self.sizes.most
        if most is not None and most < least:
            return f"no {self.size}, by the estimates"
        return f"{f'{least} <= ' if least > 0 else ''}{self.size}{'' if most is None else f' <= {most}'}"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: the host starts one function of a kernel on a device. ``arguments``, ``grid``, ``block`` and
    ``shared_bytes`` are C expressions. They name tensors as the function does, and sizes as the shapes of the kernel's
    parameters do."""

    function: str
    arguments: tuple[str, ...]
    grid: tuple[str, ...]
    """Blocks along x, y and z; trailing axes may be missing."""
    block: tuple[str, ...]
    """Threads of a block along x, y and z; trailing axes may be missing."""
    shared_bytes: str
    """Dynamic shared memory, which comes on top of the static arrays."""
    static_shared_bytes: int
    tensor_maps: tuple[TensorMap, ...] = ()
    cluster: int = 1
    """Blocks along x that run at the same time and can access one another's shared memory."""
    only_if: LaunchCondition | None = None
    """The host launches only if this holds. None: it launches whenever the grid is not empty."""
    registers: int | None = None
    """Registers of a thread; None if there was no compiler for the device."""
    begins_early: bool = False
    """Whether it may begin before the preceding launch has ended."""
    tensor_columns: int = 0
    """Columns of tensor memory that a block allocates, where the device has such a memory."""


@dataclasses.dataclass
class KernelRecord:
    """One generated kernel: the nodes that it computes, the candidates, and its source by form (tir, llvm, asm...)."""

    name: str
    op: str
    nodes: list[str]
    candidates: list[Candidate]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    crossovers: tuple[str, ...] = ()
    """Names of the program's parameters that decide for which sizes this kernel, or one of its variants, is used."""
    computes: str = ""
    """The formula with shapes, in one line."""
    description: str = ""
    """What its file says about it, for the heads of its sources."""
    requirements: tuple[str, ...] = ()
    """CPU features (LLVM names) that this kernel uses beyond those that any code for the target may use."""
    work: WorkModel | None = None
    """The work of a call; None if its bytes are all there is to count."""
    parameters: list[TensorSpec] = dataclasses.field(default_factory=list)
    """Tensors in order, outputs last. A size that is known only at run time is given as its expression."""
    launches: list[Launch] = dataclasses.field(default_factory=list)
    """Launches on a device; empty for a kernel of the processor."""
    sizes: dict[str, str] = dataclasses.field(default_factory=dict)
    """The kernel's dynamic sizes at its first call: by the names that parameters and launches use, C expressions of the
    model's sizes."""
    sized_work: SizedWork | None = None
    """The work of a call of a kernel for a device, by its dynamic sizes; None for a kernel of the processor."""
    structure: KernelStructure | None = None
    """Which lines of its sources belong together, its loops and buffers; None where that is not known."""
    calls: int = 1
    """Calls by the program in one run, not counting calls by the runtime. A call may compute several nodes."""


Loader = Callable[[], "np.ndarray | Iterator[np.ndarray]"]
"""A function that makes the data of a weight: one array, or an iterator of arrays that are the data when concatenated.
The iterator keeps a large model from holding all packed weights, or all experts of one weight, in memory at once."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One constant of the program in the layout that its kernel reads. ``load`` makes the data when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Loader

    def pieces(self) -> Iterator[np.ndarray]:
        """The data as consecutive flat arrays. Raises ValueError if its dtype or size is not the declared one."""
        expected, size = math.prod(self.shape), 0
        loaded = self.load()
        for piece in (loaded,) if isinstance(loaded, np.ndarray) else loaded:
            size += piece.size
            if piece.dtype != dtype_of(self.dtype) or size > expected:
                raise ValueError(f"{self._announcement}, but a piece is {piece.dtype}{list(piece.shape)}")
            yield np.ascontiguousarray(piece).reshape(-1)
            release_pages()
        if size != expected:
            raise ValueError(f"{self._announcement}, but has {size} elements")

    def array(self) -> np.ndarray:
        """All of the data as one array of the declared shape."""
        data, end = np.empty(math.prod(self.shape), dtype_of(self.dtype)), 0
        for piece in self.pieces():
            data[end : end + piece.size] = piece
            end += piece.size
        return data.reshape(self.shape)

    @property
    def _announcement(self) -> str:
        return f"weight {self.name!r} was announced as {self.dtype}{list(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Project:
    """Sources that another tool builds into a program. ``files``: contents by path. ``report``: the choices and their
    reasons as plain data."""

    name: str
    files: dict[str, bytes]
    report: dict[str, Any]


@dataclasses.dataclass
class Made:
    """The result of compiling a model. ``target``: the target's name."""

    target: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    warnings: list[str] = dataclasses.field(default_factory=list, kw_only=True)
    """Warnings for the user."""


@dataclasses.dataclass
class Projects(Made):
    """Sources for another tool, instead of a program."""

    projects: list[Project]


@dataclasses.dataclass
class Program(Made):
    """A model that can be called. ``objects``: object files by name; ``weights``: in the order in which the entry
    function takes them, after the inputs; ``sources``: whole-program sources by file name."""

    objects: dict[str, bytes]
    weights: list[Weight]
    kernels: list[KernelRecord]
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    requirements: list[str] = dataclasses.field(default_factory=list)
    """CPU features (LLVM names, e.g. ``avx512f``) or device properties that the objects need at run time."""
    architecture: str = ""
    """The architecture of the device (``sm_80``); empty for a program that needs none."""
    binary: bytes | None = None
    """Code for the device; None if there was no compiler for it."""
    binary_suffix: str = ""
    """Suffix of the file that holds ``binary``."""
    held: list[HeldState] = dataclasses.field(default_factory=list)
    """States that the program updates in place."""
    lengths_in_memory: bool = False
    """Whether the program takes the lengths of these states in use as tensors int64[1], too, after their shape."""
    fixed_lengths: list[str] = dataclasses.field(default_factory=list)
    """Nodes because of which a captured run serves the lengths of its capture alone."""
    streamed: list[StreamedExpertsSpec] = dataclasses.field(default_factory=list)
    """Experts that the program asks for before it uses them."""
    tables: list[int] = dataclasses.field(default_factory=list)
    """Positions of the weights of which the program only looks up rows, by a call of the runtime."""
    blocks: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many blocks of memory a run takes for intermediate values and results, by their bytes as an expression of
    sizes in C; for a device with memory of its own."""
    last: LastTokens | None = None
    """The output that can be computed for its last positions only; the caller says for how many."""
    host: Callable[[], HostProgram] | None = None
    """Function that reads the host part as plain data. Raises UnsupportedError for one that other languages cannot
    say."""


class Target(Protocol):
    """A machine that models can be compiled for. Made by a :class:`moec.targets.kind.Kind`."""

    @property
    def name(self) -> str:
        """The name as given on the command line, e.g. ``cpu:avx2``."""
        ...

    def compile(self, model: ir.Model) -> Made:
        """Compile the model to a :class:`Program` or to :class:`Projects`. Raises UnsupportedError naming node,
        operator and opset."""
        ...
