"""Give kernels names that people can read and that do not change with unrelated parts of a model.

TVM numbers symbols in the order they are asked for, also those that fusion removes later: ``fused_cast2_mul5_concat``.
Here the numbers go, and kernels that then share a name are counted in the order of their first use:
``cast_mul_concat``, ``cast_mul_concat_2``. A name is also that of files, so that of a long chain is cut.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import tvm
import tvm_ffi
from tvm import relax, tirx

EXPORTED = "moec.exported"
"""The attribute of kernels that the runtime calls by their name."""
_LONGEST = 120
_NUMBER = re.compile(r"(?<=[a-z])\d+(?=_|$)")


def readable_names(module: tvm.IRModule, used: Collection[str] = ()) -> dict[str, str]:
    """The new name of every kernel that ``main`` or the runtime calls, by its present name; none of those ``used``."""
    names: dict[str, str] = {}
    taken: set[str] = {"main", *used}
    for symbol in _used_kernels(module):
        base = _shortened(_NUMBER.sub("", symbol).removeprefix("fused_"))
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        names[symbol] = name
    return names


def rename_kernels(module: tvm.IRModule, names: dict[str, str]) -> tvm.IRModule:
    """The module with its kernels renamed, where they are defined and where they are called."""
    for symbol, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and symbol.name_hint in names:
            module[symbol] = function.with_attr("global_symbol", names[symbol.name_hint])
    return relax.transform.NormalizeGlobalVar()(module)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else name[:_LONGEST].rpartition("_")[0] or name[:_LONGEST]


def _used_kernels(module: tvm.IRModule) -> list[str]:
    used: list[str] = []

    def visit(symbol: tvm.ir.GlobalVar) -> None:
        if isinstance(module[symbol], tirx.PrimFunc) and symbol.name_hint not in used:
            used.append(symbol.name_hint)

    tvm_ffi.structural_walk(module["main"], [(tvm.ir.GlobalVar, visit)])
    exported = [
        symbol.name_hint
        for symbol, function in module.functions.items()
        if function.attrs and EXPORTED in function.attrs
    ]
    return [*used, *sorted(exported)]
