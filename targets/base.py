"""What a target is: something that turns a model into a program, and can say why it chose the kernels it chose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.specs import HeldState, LastTokens, StreamedExpertsSpec, TensorSpec
from moec.common.work import WorkModel
from moec.ir.mapped_files import release_pages

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One kernel that was considered for a node. Exactly one candidate of a record is chosen."""

    kernel: str
    eligible: bool
    reason: str
    chosen: bool = False


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A description of a tensor for the copies of a GPU's accelerator. ``numbers``: what ``cuTensorMapEncodeTiled``
    takes after the address, from the extents on, as C."""

    name: str
    tensor: str
    dtype: str
    rank: int
    numbers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SizeRange:
    """The sizes from ``least`` to ``most``, which is None where there is no limit."""

    least: int = 0
    most: int | None = None

    def __str__(self) -> str:
        return f"from {self.least}" if self.most is None else f"{self.least} to {self.most}"

    def may_hold(self, size: int | None) -> bool:
        """Whether the size may be one of them; None where it is not known now."""
        return size is None or (self.least <= size and (self.most is None or size <= self.most))


@dataclasses.dataclass(frozen=True)
class LaunchCondition:
    """That ``size``, which is C, is in a range."""

    size: str
    sizes: SizeRange

    def __str__(self) -> str:
        least, most = self.sizes.least, self.sizes.most
        return f"{f'{least} <= ' if least > 0 else ''}{self.size}{'' if most is None else f' <= {most}'}"


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the host starts one function of a kernel on a device. All but ``static_shared_bytes`` is C, in which tensors
    are called as in the function, and sizes as in the shapes of the kernel's parameters."""

    function: str
    arguments: tuple[str, ...]
    grid: tuple[str, ...]
    """Blocks along x, y and z, as many as are given."""
    block: tuple[str, ...]
    """Threads of a block, likewise."""
    shared_bytes: str
    """Asked for at the launch, beside the static ones."""
    static_shared_bytes: int
    tensor_maps: tuple[TensorMap, ...] = ()
    cluster: int = 1
    """Blocks along x that run at the same time and reach one another's shared memory."""
    only_if: LaunchCondition | None = None
    """None where nothing but an empty grid keeps the host from launching it."""
    registers: int | None = None
    """Of a thread; None where there was no compiler for the device."""
    begins_early: bool = False
    """Whether it may begin before the launch before it has ended."""


class Plan(Protocol):
    """How a kernel on a device shares out its work, for who predicts its time. Its target knows what it says."""

    def as_data(self) -> dict[str, Any]:
        """Plain data."""
        ...


@dataclasses.dataclass
class KernelRecord:
    """One generated kernel: the nodes it computes, what was considered, and its source by form (tir, llvm, asm...)."""

    name: str
    op: str
    nodes: list[str]
    candidates: list[Candidate]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    crossovers: tuple[str, ...] = ()
    """Names of the program's parameters that say for which sizes it, or a way in it, is taken."""
    computes: str = ""
    """In one line: the formula, with shapes."""
    requirements: tuple[str, ...] = ()
    """CPU features (LLVM names) that this kernel uses beyond those that any code for the target may use."""
    work: WorkModel | None = None
    """How much work a call is; None where that is its bytes alone."""
    parameters: list[TensorSpec] = dataclasses.field(default_factory=list)
    """Tensors in order, outputs last; a size that is known when it runs is its expression."""
    launches: list[Launch] = dataclasses.field(default_factory=list)
    """On a device."""
    sizes: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of the first call: the kernel's dynamic sizes, by the names that parameters and launches call them, as C
    expressions of the model's."""
    plan: Plan | None = None
    calls: int = 1
    """How often a run calls it, beside what the runtime calls; a call may be of several nodes."""


Loader = Callable[[], "np.ndarray | Iterator[np.ndarray]"]
"""Makes the data of a weight: an array, or an iterator of arrays whose elements, one array after the other, are the
data. So a large model never holds all packed weights, nor all experts of one, at once."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One constant of the program in the layout its kernel wants. ``load`` makes the data when it is written out."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Loader

    def pieces(self) -> Iterator[np.ndarray]:
        """The data as flat arrays, one after the other. Raises ValueError where it is not what was announced."""
        expected, found = math.prod(self.shape), 0
        loaded = self.load()
        for piece in (loaded,) if isinstance(loaded, np.ndarray) else loaded:
            found += piece.size
            if piece.dtype != dtype_of(self.dtype) or found > expected:
                raise ValueError(f"{self._announcement}, but a piece is {piece.dtype}{list(piece.shape)}")
            yield np.ascontiguousarray(piece).reshape(-1)
            release_pages()
        if found != expected:
            raise ValueError(f"{self._announcement}, but has {found} elements")

    def array(self) -> np.ndarray:
        """All of the data in its shape."""
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
    """Sources that are no program yet: another tool builds them. ``files``: contents by path. ``report``: plain data
    that says what was chosen and why."""

    name: str
    files: dict[str, bytes]
    report: dict[str, Any]


@dataclasses.dataclass
class Made:
    """What a target makes of a model. ``target``: its name."""

    target: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    warnings: list[str] = dataclasses.field(default_factory=list, kw_only=True)
    """What the user should know about it."""


@dataclasses.dataclass
class Projects(Made):
    """Sources for another tool, in place of a program."""

    projects: list[Project]


@dataclasses.dataclass
class Program(Made):
    """A model that can be called: object files by name, the weights in the order the entry function takes them after
    the inputs, the kernels, and whole-program sources by file name."""

    objects: dict[str, bytes]
    weights: list[Weight]
    kernels: list[KernelRecord]
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    requirements: list[str] = dataclasses.field(default_factory=list)
    """CPU features (LLVM names, e.g. ``avx512f``) or device properties that the objects need at run time."""
    architecture: str = ""
    """The architecture of the device (``sm_80``); empty for a program that needs none."""
    binary: bytes | None = None
    """Code for the device; None where there was no compiler for it."""
    binary_suffix: str = ""
    """How the name of its file ends."""
    held: list[HeldState] = dataclasses.field(default_factory=list)
    """States that it keeps in place."""
    streamed: list[StreamedExpertsSpec] = dataclasses.field(default_factory=list)
    """Experts that it asks for before it uses them."""
    last: LastTokens | None = None
    """Of which output it computes as many of the last positions as it is told."""


class Target(Protocol):
    """A place a model can be compiled for. Made by a :class:`moec.targets.kind.Kind`."""

    @property
    def name(self) -> str:
        """As given on the command line, e.g. ``cpu:avx2``."""
        ...

    def compile(self, model: ir.Model) -> Made:
        """A :class:`Program`, or :class:`Projects`. Raises UnsupportedError naming node, operator and opset."""
        ...
