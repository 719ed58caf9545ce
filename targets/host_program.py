"""The host part of a program as plain data: memory taken and given back, kernels called and sizes read, in order.

It says what the virtual machine's instructions say, in terms of named tensors and sizes, for whoever writes the program
in another language. Sizes are expressions in C of the program's named sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class HostTensor:
    """A tensor: ``offset`` bytes into the memory of that name, which a parameter, a constant or a :class:`Take` has."""

    memory: str
    offset: int
    dtype: str
    shape: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class HostParameter:
    """A parameter of the program: a tensor; a list of sizes, which has no name or ``dtype``; or one number
    (``is_number``)."""

    name: str
    dtype: str | None
    shape: tuple[str, ...]
    is_number: bool = False


@dataclasses.dataclass(frozen=True)
class Take:
    """Take memory. ``bytes``: an expression that is computed in floating point, so that it cannot overflow. ``holds``:
    a description of the first tensor in it."""

    memory: str
    bytes: str
    holds: str


@dataclasses.dataclass(frozen=True)
class Give:
    """Give memory back, after its last use."""

    memory: str


@dataclasses.dataclass(frozen=True)
class HostCall:
    """Call a kernel on tensors and numbers, which are expressions of sizes."""

    kernel: str
    arguments: tuple[HostTensor | str, ...]


@dataclasses.dataclass(frozen=True)
class ReadSizes:
    """Read new named sizes from the elements of an int64 tensor."""

    names: tuple[str, ...]
    tensor: HostTensor


@dataclasses.dataclass(frozen=True)
class Check:
    """End the run unless two sizes are equal. ``what``: the sizes, for people."""

    actual: str
    expected: str
    what: str


@dataclasses.dataclass(frozen=True)
class HostLoop:
    """Take the steps of a loop, as :data:`moec.runtime.loops.LOOP` says, which has the meaning of all fields.

    ``body``: the number of its body; ``arguments``: the trips, whether there is a first step, and the values."""

    body: int
    states: int
    asks: bool
    places: tuple[tuple[int, int], ...]
    arguments: tuple[HostTensor | str, ...]
    report: HostTensor


@dataclasses.dataclass(frozen=True)
class HostLoopResult:
    """Write a result of a loop to ``target``, as :data:`moec.runtime.loops.LOOP_RESULT` says."""

    result: int
    axis: int
    is_backward: bool
    report: HostTensor
    target: HostTensor


Step = Take | Give | HostCall | ReadSizes | Check | HostLoop | HostLoopResult


@dataclasses.dataclass(frozen=True)
class HostProgram:
    """The host part. ``parameters``: the inputs, lists of sizes, and after them the weights, ``inputs`` of them before
    the weights. ``constants``: small arrays by name. ``bodies``: of the loops, each before those that it is inside of;
    they share the names of their constants."""

    parameters: Sequence[HostParameter]
    inputs: int
    constants: Mapping[str, np.ndarray]
    steps: Sequence[Step]
    results: Sequence[HostTensor]
    bodies: Sequence[HostProgram] = ()
