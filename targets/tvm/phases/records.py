"""Records of kernels for the artifact: the nodes a kernel computes, why it was chosen, and its source to read."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from tvm import tirx

from moec import targets
from moec.common.dtypes import DTYPES
from moec.common.names import node_name, operator_name
from moec.common.short_lines import WIDTH
from moec.common.specs import TensorSpec
from moec.common.work import SizedWork
from moec.runtime.manifest import GENERIC
from moec.targets.base import Candidate, KernelRecord
from moec.targets.tvm.phases.pipeline import Generated, Optimized
from moec.targets.tvm.phases.provenance import calls_by_kernel
from moec.targets.tvm.phases.structures import TIR, structure_of, tir_texts
from moec.targets.tvm.sizes.c_expressions import in_c

HOST_NUMBERS = "moec.host_numbers"
"""Attribute with the number of a kernel's leading parameters that are numbers only the host reads."""
_NODES_LISTED = 6
_CONTINUED = "    "
_SIZE = re.compile(r"\b[A-Za-z_]\w*\b(?!\s*\()")
"""A name in an expression of sizes, in which ``min`` and ``max`` are called."""


def kernel_records(own: Mapping[str, KernelRecord], optimized: Optimized, generated: Generated) -> list[KernelRecord]:
    """One record per kernel in the order of first use. ``own``: the target's records by the name before fusion."""
    functions = {symbol.name_hint: function for symbol, function in optimized.module.functions.items()}
    calls, records = calls_by_kernel(optimized.module), []
    tirs = tir_texts({name: functions[name].with_attr("global_symbol", name) for name in optimized.names.values()})
    for before, name in optimized.names.items():
        parts = optimized.joined.parts.get(before, [before])
        own_record = own.get(parts[0])
        nodes = optimized.nodes[name]
        record = dataclasses.replace(own_record, name=name) if own_record else _generic_record(name, nodes)
        if (
            own_record and nodes and optimized.joined.parts
        ):  # others of its calls may be in kernels that it is joined to
            record = dataclasses.replace(record, nodes=list(dict.fromkeys(map(node_name, nodes))))
        if len(parts) > 1:
            record = _joined_record(record, nodes)
            _add_launched(record, [own.get(part) for part in optimized.joined.launched.get(before, ())])
        record.parameters = [_parameter(tensor) for tensor in _tensors(functions[name])]
        record.calls = calls[name]
        record.launches = generated.launches.get(name, [])
        text = {TIR: tirs[name].text}
        text |= {form: texts.get(name, "") for form, texts in generated.sources.items()}
        header = _header(record, generated.facts.get(name, []))
        heads = {form: _commented(header, targets.forms()[form].comment) for form in text}
        record.sources = {form: heads[form] + source for form, source in text.items()}
        origins = {form: texts[name] for form, texts in generated.origins.items() if name in texts}
        record.structure = structure_of(tirs[name], {form: head.count("\n") for form, head in heads.items()}, origins)
        records.append(record)
    return records


def _joined_record(record: KernelRecord, nodes: Sequence[ir.Node]) -> KernelRecord:
    """The record of a kernel that also computes what other nodes do; ``nodes``: all of them."""
    operators = [name for name in dict.fromkeys(map(operator_name, nodes)) if name != record.op]
    others = ", ".join(operators)
    return dataclasses.replace(
        record,
        op=" + ".join([*operators, record.op]),
        nodes=list(dict.fromkeys([*map(node_name, nodes), *record.nodes])),
        computes=f"{record.computes}, of elements that are computed by {others}" if others else record.computes,
    )


def _add_launched(record: KernelRecord, members: Sequence[KernelRecord | None]) -> None:
    """Add the sizes and the operations of all kernels that share a launch to the record of the first one. In the
    launch, sizes of the second have the suffix ``_2``, and so on."""
    works: list[SizedWork] = []
    for position, member in enumerate(members):
        suffix = f"_{position + 1}" if position else ""
        if member is not None:
            record.sizes = {**record.sizes, **{f"{size}{suffix}": text for size, text in member.sizes.items()}}
        if member is not None and member.sized_work is not None and member.sized_work.operations != "0":
            renamed = _SIZE.sub(rf"\g<0>{suffix}", member.sized_work.operations)
            works.append(dataclasses.replace(member.sized_work, operations=renamed))
    if works:
        total = " + ".join(work.operations for work in works)
        record.sized_work = dataclasses.replace(record.sized_work or works[0], operations=total)


def _generic_record(name: str, nodes: Sequence[ir.Node]) -> KernelRecord:
    operators = list(dict.fromkeys(operator_name(node) for node in nodes))
    reason = "no operator in it has a kernel of its own; one parallel loop nest over the elements of the result"
    return KernelRecord(
        name,
        " + ".join(operators),
        [node_name(node) for node in nodes],
        [Candidate(GENERIC, True, reason, chosen=True)],
        computes=f"{', '.join(operators)} in one loop nest",
    )


def _header(record: KernelRecord, facts: Sequence[str]) -> list[str]:
    chosen = next(candidate for candidate in record.candidates if candidate.chosen)
    nodes = ", ".join(record.nodes[:_NODES_LISTED])
    if len(record.nodes) > _NODES_LISTED:
        nodes += f", ... ({len(record.nodes)} in all)"
    return [
        f"{record.name}: {record.computes}",
        *([record.description] if record.description else []),
        *(
            f"  {parameter.name}: {parameter.dtype}[{', '.join(map(str, parameter.shape))}]"
            for parameter in record.parameters
        ),
        *(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in record.attributes.items() if _says(value)),
        *([f"crossovers: {', '.join(record.crossovers)}"] if record.crossovers else []),
        *facts,
        *_memory(record.parameters),
        f"{chosen.kernel}: {chosen.reason}",
        f"for {record.op}: {nodes}",
    ]


def _tensors(function: tirx.PrimFunc) -> list[tirx.Var]:
    """The parameters without those that only the host reads."""
    return list(function.params)[int(function.attrs.get(HOST_NUMBERS, 0)) :]


def _parameter(parameter: tirx.Var) -> TensorSpec:
    if not isinstance(parameter.ty, tirx.BufferType):
        return TensorSpec(parameter.name, str(parameter.ty), ())
    shape = (int(size) if isinstance(size, tirx.IntImm) else in_c(size) for size in parameter.shape)
    return TensorSpec(parameter.name, str(parameter.dtype), tuple(shape))


def _memory(parameters: Sequence[TensorSpec]) -> list[str]:
    """Line with the bytes of all tensors, as a sum of terms in the dynamic sizes; none for a type of unknown size."""
    bytes_of: dict[str, int] = {}
    for parameter in parameters:
        if parameter.dtype not in DTYPES:
            return []
        dynamic = " * ".join(f"({size})" if " " in size else size for size in parameter.shape if isinstance(size, str))
        static = math.prod(size for size in parameter.shape if isinstance(size, int))
        bytes_of[dynamic] = bytes_of.get(dynamic, 0) + DTYPES[parameter.dtype].itemsize * static
    terms = [f"{count} * {dynamic}" if dynamic else str(count) for dynamic, count in bytes_of.items()]
    return [f"memory: {' + '.join(terms)} bytes in all tensors"]


def _says(value: Any) -> bool:
    """Whether an attribute is worth a line: None, False and "" are not."""
    return value is not None and value is not False and value != ""


def _plain(value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return str(value)
    return (", " if any(isinstance(part, str) for part in value) else " x ").join(map(str, value))


def _commented(lines: Sequence[str], mark: str) -> str:
    """Lines of a comment, each of at most the width of the text, and an empty line."""
    width = WIDTH - len(mark) - 1
    wrapped = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=_CONTINUED) or [""]]
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in wrapped) + "\n"
