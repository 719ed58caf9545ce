"""The operator Attention of opset 24 on a GPU: one pass over the keys, by a kernel for few queries or one for many."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir
from tvm import relax, tirx

from moec.common.kernel_sizes import LARGEST
from moec.common.specs import ROW_SCALE_BYTES
from moec.common.work import SizedWork
from moec.targets.base import SizeRange
from moec.targets.cuda.kernels.attention_mma import ATTENTION_MMA
from moec.targets.cuda.kernels.attention_wgmma import ATTENTION_WGMMA
from moec.targets.gpu.kernels.attention_few import ATTENTION_FEW, rows_together
from moec.targets.gpu.kernels.attention_join import ATTENTION_JOIN, keys_divided, parts_for, parts_of_sequences
from moec.targets.gpu.kernels.attention_operands import (
    FEW_QUERIES,
    SPANS,
    TABLE,
    AttentionLaunch,
    kernel_operands,
    slices_of,
)
from moec.targets.gpu.kernels.attention_tiled import ATTENTION_TILED
from moec.targets.gpu.lowering.launch_conditions import launch_if
from moec.targets.gpu.lowering.ways import LaunchChoice, call_ways
from moec.targets.tvm.heavy.attention import AttentionInputs, AttentionProblem
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS, rows_in
from moec.targets.tvm.kernels.kernel import KernelCall, Selection, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import record_of
from moec.targets.tvm.sizes.shapes import static_size

KERNELS = (ATTENTION_FEW, ATTENTION_WGMMA, ATTENTION_MMA, ATTENTION_TILED)
_FEW, _MANY = SizeRange(most=FEW_QUERIES), SizeRange(least=FEW_QUERIES + 1)


def attend(
    architecture: str,
    lowering: LoweringContext,
    node: ir.Node,
    inputs: AttentionInputs,
    problem: AttentionProblem,
    output: relax.TensorType,
) -> relax.Expr:
    """The result of the attention, by the kernel that is best for its number of queries. In a batch of sequences, both
    are launched, except the one for many queries where there are few in all; each computes its own sequences."""
    queries, operands = static_size(inputs.query.ty.shape[2]), kernel_operands(lowering, inputs)
    results: list[relax.Var] = []
    for numbers in (_FEW, _MANY):
        launch = AttentionLaunch(problem, str(output.dtype), numbers)
        chosen = select(KERNELS, launch, architecture)
        if not _launched(launch).may_hold(queries):
            continue
        if chosen.kernel is ATTENTION_FEW:
            results = _attend_in_parts(lowering, node, launch, chosen, operands, output)
        else:
            results = [call_ways(lowering, node, [_way(launch, chosen)], 2, operands, output, results)]
    (result,) = results
    return result


def _launched(launch: AttentionLaunch) -> SizeRange:
    """The numbers of queries in all for which a kernel is launched."""
    has_few = launch.queries.most is not None
    return SizeRange() if launch.problem.sequences and has_few else launch.queries


def _way(launch: AttentionLaunch, chosen: Selection) -> LaunchChoice:
    function = chosen.kernel.build(launch.problem, launch.dtype)
    attributes = _attributes(launch) | chosen.tile_of(launch.problem)
    return LaunchChoice(chosen, function, _launched(launch), attributes, _work(launch))


def _work(launch: AttentionLaunch) -> SizedWork:
    """The work of an attention in which all keys are in use. Scores and sums of hidden keys do not count, and keys
    before all windows are not read."""
    problem, queries = launch.problem, "S"
    if problem.sequences:
        return _work_of_sequences(launch)
    keys = f"(pages * {_keys_of_page(problem, 'page')})" if problem.paged else "P"
    few = f"min({queries}, {keys})"
    seen = f"{queries} * {keys}"
    moved = {}
    if problem.window:
        seen, inside = f"{queries} * min({keys}, {problem.window})", f"min({keys}, {queries} + {problem.window})"
        moved |= {"key": f"B * G * {inside} * {problem.head_size}", "value": f"B * G * {inside} * {problem.value_size}"}
    elif problem.causal == "first":
        seen = f"({few} * ({few} + 1) / 2 + ({queries} - {few}) * {keys})"
    elif problem.causal:
        seen = f"({few} * ({few} + 1) / 2 + {few} * ({keys} - {few}))"
    numbers = problem.heads_per_group * (problem.head_size + problem.value_size)
    if problem.values_in_keys:  # read with the keys
        moved["value"] = "0"
    if launch.queries.most is not None:  # results of parts are written only if there are several
        moved |= {name: f"min(parts - 1, 1) * {LARGEST}" for name in ("sums", "statistics")}
    return SizedWork(f"2 * B * G * {numbers} * {seen}", launch.dtype, moved)


def _work_of_sequences(launch: AttentionLaunch) -> SizedWork:
    """The most work of sequences with a number of queries and keys in all: sizes tell neither those of each one nor
    which of both kernels computes it."""
    problem = launch.problem
    keys = f"M * {_keys_of_page(problem, 'page')}"
    keys = f"min({keys}, S + {problem.window})" if problem.window else keys
    moved = {"key": f"N * G * {keys} * {problem.head_size}", "value": f"N * G * {keys} * {problem.value_size}"}
    if launch.queries.most is not None:
        moved |= {name: f"min(parts - 1, 1) * {LARGEST}" for name in ("sums", "statistics")}
    numbers = problem.heads_per_group * (problem.head_size + problem.value_size)
    return SizedWork(f"2 * G * {numbers} * S * {keys}", launch.dtype, moved)


def _attributes(launch: AttentionLaunch) -> dict[str, object]:
    return {**dataclasses.asdict(launch.problem), "queries": str(launch.queries)}


def _attend_in_parts(
    lowering: LoweringContext,
    node: ir.Node,
    launch: AttentionLaunch,
    chosen: Selection,
    operands: list[relax.Expr],
    output: relax.TensorType,
) -> list[relax.Var]:
    """The result for few queries: blocks of threads each compute a part of the keys, then a kernel joins the parts."""
    problem = launch.problem
    batch, heads, queries, _ = operands[0].ty.shape
    few = queries if problem.sequences else tirx.min(queries, tirx.IntImm("int64", FEW_QUERIES))
    spans = [operands[SPANS]] if problem.sequences else []
    places = [_parts(launch, operands), batch, heads, few]
    types = [relax.TensorType([*places, size], "float32") for size in (problem.value_size, 2)]
    function = launch_if(chosen.kernel.build(problem, launch.dtype), 0, 2, _launched(launch))
    called = KernelCall(chosen, function, operands, _attributes(launch), sized_work=_work(launch))
    sums, statistics, result = lowering.call_kernel(function, operands, [*types, output], record_of(node, called))
    axis, joined = 1 if problem.query_major else 2, [sums, statistics, *spans]
    joining = launch_if(ATTENTION_JOIN.build(problem, launch.dtype), len(joined), axis, _launched(launch))
    chosen, described = select((ATTENTION_JOIN,), problem, None), {"queries": str(launch.queries)}
    join = KernelCall(chosen, joining, joined, described)
    return lowering.call_kernel_on(joining, joined, [result], record_of(node, join))


def _parts(launch: AttentionLaunch, operands: list[relax.Expr]) -> Any:
    """The number of parts that the keys are divided into, as an expression of the operands' sizes."""
    problem, (query, key, *_) = launch.problem, operands
    batch, heads, queries, _ = query.ty.shape
    sizes = key.ty.shape
    if problem.sequences:
        most = operands[TABLE].ty.shape[1] * _keys_of_page(problem, sizes[3])
        return parts_of_sequences(keys_divided(problem, most, tirx.IntImm("int64", FEW_QUERIES)))
    there = sizes[0] * _keys_of_page(problem, sizes[3]) if problem.paged else sizes[2]
    keys = keys_divided(problem, there, queries)
    rows = rows_together(problem, launch.dtype)
    tiles = (queries * problem.heads_per_group + (rows - 1)) // rows
    return parts_for(batch * (heads // problem.heads_per_group) * tiles * slices_of(problem), keys)


def _keys_of_page(problem: AttentionProblem, page: Any) -> Any:
    """The number of keys of a page, from its size, which is in bytes where they are in int8. ``page``: an expression,
    or its C."""
    if problem.paged != INT8_ROWS:
        return page
    row = problem.head_size + ROW_SCALE_BYTES
    return f"({page} / {row})" if isinstance(page, str) else rows_in(page, problem.head_size)
