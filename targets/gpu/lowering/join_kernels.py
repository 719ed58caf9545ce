"""All joining of kernels on a GPU, which saves launches: operands are computed where they are read, then small kernels
share launches."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx

from moec.targets.gpu.kernels.launch import BESIDE, STORING, TAKES
from moec.targets.gpu.lowering.inline_producers import inline_producers
from moec.targets.gpu.lowering.side_by_side import side_by_side
from moec.targets.tvm.phases.pipeline import Joined


def join_kernels(module: tvm.IRModule) -> Joined:
    """The module with joined kernels, without the attributes that allow it."""
    inlined = inline_producers(module)
    grouped = side_by_side(inlined.module)
    members = grouped.parts
    computed = {**inlined.computed}
    for result, calls in grouped.computed.items():
        computed[result] = [before for call in calls for before in inlined.computed.get(call, [call])]
    parts: dict[str, Sequence[str]] = dict(inlined.parts)
    for symbol, names in members.items():
        parts[symbol] = [part for name in names for part in inlined.parts.get(name, [name])]
    launched = {symbol: [inlined.parts.get(name, [name])[0] for name in names] for symbol, names in members.items()}
    plain = {symbol: _without_marks(each) for symbol, each in grouped.module.functions.items()}
    return Joined(tvm.IRModule(plain, grouped.module.attrs), parts, launched, computed)


def _without_marks(function: tvm.ir.BaseFunc) -> tvm.ir.BaseFunc:
    for mark in (TAKES, STORING, BESIDE):
        if isinstance(function, tirx.PrimFunc) and function.attrs and mark in function.attrs:
            function = function.without_attr(mark)
    return function
