"""The kernels of a CUDA source: their names, parameters, launch bounds and static shared arrays."""

from __future__ import annotations

import dataclasses
import itertools
import re

from moec.common.errors import UnsupportedError

_KERNEL = re.compile(r'extern "C" __global__ void\s+((?:__\w+__\s*\([^()]*\)\s*)*)(\w+)\s*\(([^()]*)\)\s*\{')
_MOST_THREADS = re.compile(r"__launch_bounds__\s*\(\s*(\d+)")
_CLUSTER = re.compile(r"__cluster_dims__\s*\(([^()]*)\)")
_QUALIFIERS = re.compile(r"__restrict__|__grid_constant__|\bconst\b(?=\s+__grid_constant__)")
_STATIC_ARRAY = re.compile(
    r"(?<!extern )__shared__\s+((?:alignas|__align__)\s*\(\d+\)\s+)?([A-Za-z_][\w: ]*?)\s+(\w+)\s*((?:\[[^\]]+\])+)\s*;"
)
_POOL = re.compile(
    r"extern __shared__\s+(?:(?:alignas|__align__)\s*\((\d+)\)\s+)?([A-Za-z_][\w: ]*?)\s+(\w+)\s*\[\s*\]\s*;"
)
_LEAST_ALIGNMENT = 16
"""The alignment in bytes of a pool that declares none."""
_RED_ZONE_BYTES = 64


@dataclasses.dataclass(frozen=True)
class StaticArray:
    """An array in the shared memory of a kernel."""

    type: str
    name: str
    extents: str
    """The extents as written: ``[8][32]``."""
    alignment: str
    """The alignment as written: ``alignas(64)``, or nothing."""


@dataclasses.dataclass(frozen=True)
class KernelSource:
    """One kernel of a source."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    """The type and the name of each parameter."""
    most_threads: int
    """The most threads of a block, from ``__launch_bounds__``; 0 without it."""
    arrays: tuple[StaticArray, ...]
    pool_alignment: int
    """The declared alignment of dynamic shared memory."""
    cluster: int
    """Blocks of a cluster, from ``__cluster_dims__``; 1 without it."""
    begin: int
    end: int
    """The positions of the definition in the source, up to the next one."""

    @property
    def arrays_type(self) -> str:
        return f"{self.name}_static_arrays"

    @property
    def shared_bytes(self) -> str:
        """The size of the static arrays, as C++."""
        return f"sizeof({self.arrays_type})" if self.arrays else "0"

    @property
    def red_zones(self) -> str:
        """The bytes after each array that nobody may write, as C++."""
        zones = (
            f'{{offsetof({self.arrays_type}, behind_{i}), {_RED_ZONE_BYTES}, "{array.name}"}}'
            for i, array in enumerate(self.arrays)
        )
        return "{" + ", ".join(zones) + "}"

    def declare_arrays(self) -> str:
        """The C++ structure that lays out the static arrays, each followed by a red zone."""
        if not self.arrays:
            return ""
        members = "".join(
            f"  {array.alignment} {array.type} array_{i}{array.extents};\n"
            f"  unsigned char behind_{i}[{_RED_ZONE_BYTES}];\n"
            for i, array in enumerate(self.arrays)
        )
        return f"struct {self.arrays_type} {{\n{members}}};\n"


def find_kernels(source: str) -> list[KernelSource]:
    """The kernels defined in a source, in order. Raises UnsupportedError for clusters along y or z."""
    definitions = list(_KERNEL.finditer(source))
    ends = [match.start() for match in definitions[1:]] + [len(source)]
    kernels = []
    for match, end in zip(definitions, ends, strict=True):
        attributes, name, parameters = match.groups()
        bounds = _MOST_THREADS.search(attributes)
        arrays = (
            StaticArray(array[2], array[3], array[4], array[1] or "")
            for array in _STATIC_ARRAY.finditer(source, match.end(), end)
        )
        most_threads = int(bounds[1]) if bounds else 0
        kernels.append(
            KernelSource(
                name,
                tuple(_parameters(parameters)),
                most_threads,
                tuple(arrays),
                max(_pool_alignments(source[match.end() : end]), default=_LEAST_ALIGNMENT),
                _cluster(name, attributes),
                match.start(),
                end,
            )
        )
    return kernels


def _pool_alignments(text: str) -> list[int]:
    return [int(pool[1]) for pool in _POOL.finditer(text) if pool[1]]


def place_shared_memory(source: str, kernels: list[KernelSource]) -> str:
    """The source with every shared array bound to the emulated block's memory."""
    parts, position = [], 0
    for kernel in kernels:
        parts += [_bind_pool(source[position : kernel.begin]), kernel.declare_arrays()]
        parts.append(_bind_pool(_bind_arrays(source[kernel.begin : kernel.end], kernel)))
        position = kernel.end
    return "".join([*parts, source[position:]])


def _bind_arrays(source: str, kernel: KernelSource) -> str:
    numbers = itertools.count()

    def bound(match: re.Match[str]) -> str:
        return f"auto& {match[3]} = emulator::static_arrays<{kernel.arrays_type}>().array_{next(numbers)};"

    return _STATIC_ARRAY.sub(bound, source)


def _bind_pool(source: str) -> str:
    return _POOL.sub(r"\2* \3 = reinterpret_cast<\2*>(emulator::dynamic_pool());", source)


def _parameters(text: str) -> list[tuple[str, str]]:
    """The type and the name of each parameter; the name is the last word."""
    parameters = []
    for part in filter(None, map(str.strip, text.split(","))):
        words = " ".join(_QUALIFIERS.sub(" ", part).replace("*", "* ").split())
        type_, _, name = words.rpartition(" ")
        parameters.append((type_, name))
    return parameters


def _cluster(name: str, attributes: str) -> int:
    match = _CLUSTER.search(attributes)
    if match is None:
        return 1
    along_x, *others = (extent.strip() for extent in match[1].split(","))
    if not along_x.isdecimal() or any(extent != "1" for extent in others):
        raise UnsupportedError(
            f"kernel {name}: clusters of {match[1]} blocks are not emulated; expected a number of blocks along x; "
            "run this kernel on a GPU"
        )
    return int(along_x)
