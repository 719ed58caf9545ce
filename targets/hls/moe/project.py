"""The files of a generated MoE project: sources, testbench with vectors, packed weights, build files.

| path | contents |
|---|---|
| ``src/moe_block.cpp``, ``src/block_*.h`` | generated: the top function, the layer's constants and tables |
| ``src/moec/`` | the header library of processes, the same for all layers |
| ``src/testbench.cpp``, ``data/`` | test vectors: packed tokens and weights, and the expected results |
| ``sim/hls_stream.h`` | a model of the vendor's streams, for C simulation with any compiler |
| ``Makefile``, ``hls_config.cfg``, ``run_hls.tcl`` | C simulation anywhere; synthesis where Vitis is |
| ``link.cfg`` | the memory port of each AXI master |
| ``host.py`` | converts floats to tokens as the hardware reads them, and back |
| ``compare_report.py`` | compares ``estimate.json`` with a synthesis report |
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from moec.targets.base import Project
from moec.targets.hls.design.channels import Channel, channels_of
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.normalization import inverse_roots
from moec.targets.hls.design.numbers import BEAT_BYTES, FRACTION_BITS, MOST_STAGES
from moec.targets.hls.design.striping import stripe_down, stripe_names, stripe_up
from moec.targets.hls.hardware.configuration import LEAST_VERSION
from moec.targets.hls.hardware.memories import Memory, channel_memories, memories_of
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.hardware.ports import masters_of, port_names
from moec.targets.hls.moe import packing, reference
from moec.targets.hls.moe.quantize import QuantizedBlock, power_table, sigmoid_table
from moec.targets.hls.wires import ExpertsWires

Array = np.ndarray[Any, Any]

TOP = "moe_block"
CLOCK_UNCERTAINTY = 12
"""Percent of the clock period that scheduling leaves to placement and routing; the tool's default is 27."""
_PACKAGE = "moec.targets.hls"
_TEMPLATES = {
    "block_config.h.j2": "src/block_config.h",
    "block_tables.h.j2": "src/block_tables.h",
    "moe_block.cpp.j2": "src/moe_block.cpp",
    "testbench.cpp.j2": "src/testbench.cpp",
    "hls_config.cfg.j2": "hls_config.cfg",
    "link.cfg.j2": "link.cfg",
    "run_hls.tcl.j2": "run_hls.tcl",
    "Makefile.j2": "Makefile",
    "README.md.j2": "README.md",
    "host.py.j2": "host.py",
}
_NUMBERS_PER_LINE = 16


@dataclasses.dataclass(frozen=True)
class Description:
    """Words for a project's README and comments: the block's name, its routing and experts, the device and its clock in
    MHz."""

    name: str
    routing: str
    experts: str
    device: str
    clock: float


def project_files(design: Design, block: QuantizedBlock, vectors: Array, description: Description) -> dict[str, bytes]:
    """The contents of a project's files by path. ``vectors``: integer tokens [T, d] that the testbench runs."""
    data = vector_files(design, block, vectors)
    context = _context(design, block, description, data)
    files = {path: render(name, context) for name, path in _TEMPLATES.items()}
    library = library_files(memories_of(design))
    return {**files, **library, **{f"data/{name}": content for name, content in data.items()}}


def estimated_project(name: str, files: dict[str, bytes], estimate: dict[str, Any], report: dict[str, Any]) -> Project:
    """The project of a block, with its estimate added to the files and to the ``report``, which names the node."""
    files = {**files, "estimate.json": json.dumps(estimate, indent=1).encode()}
    return Project(name, files, {**report, "estimate": estimate})


def library_files(memories: Iterable[Memory]) -> dict[str, bytes]:
    """The files that all projects share. They differ only in the storage of arrays, which is written into pragmas,
    since these take no constants."""
    root = importlib.resources.files(_PACKAGE)
    headers = {
        f"src/moec/{header.name}": _bound(header.read_text(encoding="utf-8"), memories)
        for header in _headers(root / "library")
    }
    return {
        **headers,
        "sim/hls_stream.h": (root / "library" / "sim" / "hls_stream.h").read_bytes(),
        "compare_report.py": (root / "compare_report.py").read_bytes(),
    }


def _bound(header: str, memories: Iterable[Memory]) -> bytes:
    """The header with the BIND_STORAGE pragmas of its processes' arrays set to the storage of these memories."""
    for memory in memories:
        # The function of the process, or of a part of it, whose name begins with the process's.
        start = re.search(rf"^(inline )?void {memory.process}(_\w+)?\(", header, re.MULTILINE)
        if memory.variable and start is not None:
            pragma = re.compile(rf"(#pragma HLS BIND_STORAGE variable={memory.variable} .*impl=)\w+")
            match = pragma.search(header, start.start())
            if match is not None:
                header = header[: match.start()] + match[1] + memory.implementation + header[match.end() :]
    return header.encode()


def bound_channels(channels: Iterable[Channel]) -> list[Memory]:
    """The memories of channels too large for shift registers, which a pragma binds so that the tool has no choice."""
    return [memory for memory in channel_memories(channels) if memory.variable]


def vector_files(design: Design, block: QuantizedBlock, vectors: Array) -> dict[str, bytes]:
    """The data files of the testbench: weights, tokens, and the results of the integer reference."""
    expected = reference.run(block, vectors)
    loads = np.append(expected.loads, len(vectors)).astype("<i4")
    norm = {} if block.norm is None else {"norm.bin": packing.pack_norm(block.norm, design.width)}
    return {
        **norm,
        "tokens.bin": packing.pack_tokens(design, vectors),
        "router.bin": packing.pack_router(design, block),
        **stripe_up(design, packing.pack_up(design, block)),
        **stripe_down(design, packing.pack_down(design, block.down)),
        "outputs.bin": packing.pack_stream(expected.output, design.width),
        "loads.bin": loads.tobytes(),
    }


def _context(design: Design, block: QuantizedBlock, description: Description, data: dict[str, bytes]) -> dict[str, Any]:
    numbers = design.shape.tokens * design.width
    tokens_in = numbers if design.shape.norm == "none" else 2 * numbers
    depth = {name[: -len(".bin")]: max(1, len(content) // BEAT_BYTES) for name, content in data.items()}
    return {
        **dataclasses.asdict(description),
        "top": TOP,
        "struct": "block",
        "design": design,
        "wires": ExpertsWires.of(block),
        "shape": design.shape,
        "fifos": design.fifos,
        "items_down_depth": design.items_down_depth,
        "quantized": block,
        "depth": {**depth, "tokens_in": -(-tokens_in // BEAT_BYTES), "tokens_out": -(-2 * numbers // BEAT_BYTES)},
        "data": "data",
        "most_stages": MOST_STAGES,
        "fraction_bits": FRACTION_BITS,
        "least_version": LEAST_VERSION,
        "clock_uncertainty": CLOCK_UNCERTAINTY,
        "bound_channels": bound_channels(channels_of(design)),
        "ports": port_names(find_part(description.device).memory, masters_of(design)),
        "up_ports": [f"{name}_weights" for name in stripe_names("up", design.masters_up)],
        "down_ports": [f"{name}_weights" for name in stripe_names("down", design.masters_down)],
        "score_copies": -(-(design.shape.slots + 1) // 2),
        "powers": power_table(),
        "sigmoids": sigmoid_table(),
        "inverse_roots": inverse_roots(),
        "listed": listed,
        "repeated": repeated,
    }


def render(template: str, context: dict[str, Any]) -> bytes:
    return _environment().get_template(template).render(context).encode()


def repeated(macro: str, count: int) -> str:
    return ", ".join([macro] * count)


def listed(numbers: Iterable[int]) -> str:
    """The numbers separated by commas, as a macro continued over lines."""
    texts = [str(int(number)) for number in numbers]
    lines = [", ".join(texts[at : at + _NUMBERS_PER_LINE]) for at in range(0, len(texts), _NUMBERS_PER_LINE)]
    return ", \\\n    ".join(lines)


def _headers(folder: Any) -> list[Any]:
    return sorted((file for file in folder.iterdir() if file.name.endswith(".h")), key=lambda file: file.name)


@functools.cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.PackageLoader(_PACKAGE, "templates")
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
