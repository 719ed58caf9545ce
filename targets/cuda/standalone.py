"""A standalone program of one kernel: CUDA C with a ``main``, and a file with its inputs and expected results."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec.common.errors import MoecError, UnsupportedError
from moec.runtime.artifact import Artifact
from moec.runtime.description import find_kernel
from moec.runtime.entries import KernelEntry
from moec.targets.cuda.estimates.sizes import MULTIPROCESSORS
from moec.targets.cuda.nvcc import PREAMBLE
from moec.targets.kind import CaughtTensor

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = {"max": ">", "min": "<"}
"""Functions in expressions of sizes, each with the comparison that selects the first of two arguments."""
_MAP_TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "uint8": "UINT8"}
_USUAL_SIZE = 7
"""The size of dynamic dimensions for which any size will do."""


@dataclasses.dataclass(frozen=True)
class CudaStandalone:
    """:class:`moec.targets.kind.Standalone` in CUDA C."""

    kernel: str
    source: str
    parameters: Sequence[str]
    least_size: int

    @staticmethod
    def of(artifact: Artifact, kernel: str, architecture: str | None = None) -> CudaStandalone:
        """The program of a kernel of the artifact. Raises what :func:`program_text` does."""
        source = program_text(artifact, kernel, architecture)
        record = _record(artifact, kernel, architecture)
        names = [parameter["name"] for parameter in record["parameters"]]
        return CudaStandalone(kernel, source, names, _sufficient_size(record["launches"]))

    def files(self, tensors: Sequence[CaughtTensor]) -> dict[str, bytes]:
        """The files ``<kernel>.cu`` and ``<kernel>.numbers`` by name."""
        return {f"{self.kernel}.cu": self.source.encode(), f"{self.kernel}.numbers": numbers_of(tensors)}


def program_text(artifact: Artifact, kernel: str, architecture: str | None = None) -> str:
    """The text of the program. Raises MoecError for a kernel that does not exist or is not for a GPU; UnsupportedError
    for one whose launch needs more than its tensors and their sizes."""
    program, text = artifact.program(architecture), find_kernel(artifact, kernel, architecture)
    record = _record(artifact, kernel, architecture)
    if not record["launches"]:
        raise MoecError(f"{artifact.where}: kernel {kernel!r} is not for a GPU; choose an artifact for --target cuda")
    head, _, code = text.source("cuda").partition("\n\n")
    values = {
        "head": head,
        "program": kernel,
        "numbers": f"{kernel}.numbers",
        "virtual": program.architecture.replace("sm_", "compute_"),
        "real": program.architecture,
        "preamble": _preamble(artifact, program.architecture),
        "kernels": _with_clusters(code, record["launches"]),
        "parameters": str(len(record["parameters"])),
        "encode": _template("tensor_map") if any(launch["tensor_maps"] for launch in record["launches"]) else "",
        "launches": "\n".join(_launch_code(kernel, record)),
    }
    return string.Template(_template("standalone")).substitute(values)


def _with_clusters(code: str, launches: Sequence[Mapping[str, Any]]) -> str:
    """The kernels' text with the sizes of clusters as attributes of the functions, because the program's launches do
    not set them."""
    for launch in launches:
        if launch["cluster"] > 1:
            function = launch["function"]
            code = code.replace(f" {function}(", f" __cluster_dims__({launch['cluster']}, 1, 1) {function}(")
    return code


def _record(artifact: Artifact, kernel: str, architecture: str | None) -> KernelEntry:
    return next(record for record in artifact.program(architecture).kernels if record["name"] == kernel)


def numbers_of(tensors: Sequence[CaughtTensor]) -> bytes:
    """The file of numbers that the program reads; its format is described in the template."""
    lines = []
    for tensor in tensors:
        array = tensor.before
        lines.append(
            " ".join(map(str, (tensor.name, array.dtype.name, array.itemsize, array.ndim, *array.shape))) + "\n"
        )
    data = [array.tobytes() for tensor in tensors for array in (tensor.before, tensor.after)]
    return "".join([*lines, "\n"]).encode() + b"".join(data)


def _sufficient_size(launches: Sequence[Mapping[str, Any]]) -> int:
    """A value of all dynamic sizes at which the host launches the kernel, whichever size its condition tests."""
    ranges = [launch["only_if"]["sizes"] for launch in launches if launch["only_if"] is not None]
    if not ranges:
        return _USUAL_SIZE
    most = min((sizes["most"] for sizes in ranges if sizes["most"] is not None), default=_USUAL_SIZE)
    return max(min(most, _USUAL_SIZE), *(sizes["least"] for sizes in ranges))


def _preamble(artifact: Artifact, architecture: str) -> str:
    """The text before all kernels; its file is in the folder of the architecture if the artifact has several."""
    alone = len(artifact.manifest.programs) == 1
    return artifact.text(f"src/{PREAMBLE}" if alone else f"src/{architecture}/{PREAMBLE}")


def _template(name: str) -> str:
    return (_TEMPLATES / f"{name}.cu").read_text(encoding="utf-8")


def _launch_code(kernel: str, record: Mapping[str, Any]) -> Iterator[str]:
    """The lines of ``main`` that define tensors and sizes by their names and launch the kernel. Raises UnsupportedError
    for a launch that uses any other name."""
    parameters = record["parameters"]
    tensors = [f"{tensor['name']}_ptr" for tensor in parameters]
    yield "  // The kernel's tensors, called as in its text, and their sizes."
    for index, name in enumerate(tensors):
        yield f"  const Tensor& {name} = tensors[{index}];"
    sizes: dict[str, str] = {}
    for name, parameter in zip(tensors, parameters, strict=True):
        for axis, size in enumerate(parameter["shape"]):
            if isinstance(size, str) and _NAME.fullmatch(size):
                sizes.setdefault(size, f"{name}.shape[{axis}]")
    for launch in record["launches"]:
        _refuse_unknown(
            kernel,
            launch,
            {*tensors, *sizes, *(tensor_map["name"] for tensor_map in launch["tensor_maps"]), MULTIPROCESSORS},
        )
    if any(MULTIPROCESSORS in "".join(launch["grid"]) for launch in record["launches"]):
        yield f"  int {MULTIPROCESSORS} = 0;"
        yield f'  check(cudaDeviceGetAttribute(&{MULTIPROCESSORS}, cudaDevAttrMultiProcessorCount, 0), "the GPU");'
    yield from (f"  const int64_t {size} = {value};" for size, value in sizes.items())
    launches = [line for launch in record["launches"] for line in _one_launch(launch)]
    for name, comparison in _FUNCTIONS.items():
        if any(f"{name}(" in line for line in launches):
            yield f"  const auto {name} = [](int64_t a, int64_t b) {{ return a {comparison} b ? a : b; }};"
    yield from launches


def _refuse_unknown(kernel: str, launch: Mapping[str, Any], declared: set[str]) -> None:
    expressions = (*launch["arguments"], *launch["grid"], *launch["block"], launch["shared_bytes"])
    names = {name for text in expressions for name in _NAME.findall(text)} - _FUNCTIONS.keys()
    if unknown := sorted(names - declared):
        raise UnsupportedError(
            f"kernel {kernel!r} is launched with {unknown[0]!r}; expected only its tensors and sizes in a program "
            "of this kernel alone; choose another kernel"
        )


def _one_launch(launch: Mapping[str, Any]) -> Iterator[str]:
    for tensor_map in launch["tensor_maps"]:
        yield _tensor_map_code(tensor_map)
    function, shared = launch["function"], launch["shared_bytes"]
    if shared != "0":
        yield f"  check(cudaFuncSetAttribute({function}, cudaFuncAttributeMaxDynamicSharedMemorySize, {shared}),"
        yield f'        "{shared} bytes of shared memory");'
    grid, block = (", ".join(map(_extent, launch[what])) for what in ("grid", "block"))
    yield f"  {function}<<<dim3({grid}), dim3({block}), {shared}>>>({', '.join(launch['arguments'])});"
    yield f'  check(cudaGetLastError(), "{function}");'


def _extent(text: str) -> str:
    return text if text.isdigit() else f"unsigned({text})"


def _length(text: str) -> str:
    return text if text.isdigit() else f"cuuint64_t({text})"


def _tensor_map_code(tensor_map: Mapping[str, Any]) -> str:
    rank, numbers = tensor_map["rank"], list(tensor_map["numbers"])
    if tensor_map["dtype"] not in _MAP_TYPES:
        raise UnsupportedError(f"tensor map of {tensor_map['dtype']}: expected one of {', '.join(_MAP_TYPES)}")
    lists = []
    for count in (rank, rank - 1, rank, rank):
        lists.append("{" + ", ".join(map(_length, numbers[:count])) + "}")
        del numbers[:count]
    values = [
        f"{tensor_map['tensor']}_ptr",
        f"CU_TENSOR_MAP_DATA_TYPE_{_MAP_TYPES[tensor_map['dtype']]}",
        *lists,
        *map(str, numbers),
    ]
    return f"  const CUtensorMap {tensor_map['name']} = encode_tensor_map({', '.join(values)});"
