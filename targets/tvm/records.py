"""What the artifact says about every kernel: the nodes it computes, why it was chosen, and its source to read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax, s_tir, tirx

from moec.ir.names import node_name, operator_name
from moec.runtime.manifest import GENERIC
from moec.targets.base import Candidate, KernelRecord
from moec.targets.tvm import sources
from moec.targets.tvm.pipeline import Optimized

_COMMENT = {"tir": "#", "llvm": ";", "asm": "#"}
_NODES_LISTED = 6
_TYPED_INTEGER = re.compile(r"T\.int64\((\d+)\)")


def kernel_records(
    own: Mapping[str, KernelRecord], optimized: Optimized, executable: relax.VMExecutable
) -> list[KernelRecord]:
    """One record per kernel in the order of first use. ``own``: the target's records by the name before fusion."""
    functions = {symbol.name_hint: function for symbol, function in optimized.module.functions.items()}
    names = list(optimized.names.values())
    libraries = list(executable.mod.imports)
    llvm = sources.llvm_of("\n".join(library.inspect_source("ll") for library in libraries), names)
    assembly = sources.assembly_of("\n".join(library.inspect_source("asm") for library in libraries), names)
    records = []
    for before, name in optimized.names.items():
        given = own.get(before)
        nodes = optimized.nodes[name]
        record = dataclasses.replace(given, name=name) if given else _generic_record(name, nodes)
        text = {"tir": _tir_text(name, functions[name]), "llvm": llvm.get(name, ""), "asm": assembly.get(name, "")}
        header = _header(record, functions[name])
        record.sources = {form: _commented(header, _COMMENT[form]) + source for form, source in text.items()}
        records.append(record)
    return records


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


def _tir_text(name: str, function: tirx.PrimFunc) -> str:
    """TVMScript without what only schedules need: blocks become plain loops."""
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    transform = s_tir.transform
    plain = [transform.ConvertBlocksToOpaque(), transform.LowerOpaqueBlock(), transform.StmtSimplify()]
    function = tvm.ir.transform.Sequential(plain)(module)[name]
    # Integers of one type are printed as plain numbers: of the type that makes the shorter text.
    text = min((function.script(int_dtype=dtype) for dtype in ("int64", "int32")), key=len)
    return "\n".join(line for line in text.splitlines() if not line.startswith("# from ")).strip() + "\n"


def _header(record: KernelRecord, function: tirx.PrimFunc) -> list[str]:
    chosen = next(candidate for candidate in record.candidates if candidate.chosen)
    nodes = ", ".join(record.nodes[:_NODES_LISTED])
    if len(record.nodes) > _NODES_LISTED:
        nodes += f", ... ({len(record.nodes)} in all)"
    return [
        f"{record.name}: {record.computes}",
        *(f"  {parameter.name}: {_type(parameter)}" for parameter in function.params),
        *(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in record.attributes.items()),
        f"{chosen.kernel}: {chosen.reason}",
        f"for {record.op}: {nodes}",
    ]


def _type(parameter: tirx.Var) -> str:
    if not isinstance(parameter.ty, tirx.BufferType):
        return str(parameter.ty)
    sizes = [_TYPED_INTEGER.sub(r"\1", str(size)).replace("T.", "") for size in parameter.shape]
    return f"{parameter.dtype}[{', '.join(sizes)}]"


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _commented(lines: Sequence[str], mark: str) -> str:
    return "".join(f"{mark} {line}\n" for line in lines) + "\n"
