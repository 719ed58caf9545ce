"""The kernels of the MoE operators as the selector sees them: what each computes, and which problems it can do."""

from __future__ import annotations

import dataclasses

from moec.targets.base import Eligibility
from moec.targets.cpu.kernels import dispatch, route
from moec.targets.cpu.kernels.grouped_gemm import GroupedProblem
from moec.targets.cpu.machine import Machine
from moec.targets.tvm.routing import RouteProblem
from moec.targets.tvm.selection import Kernel, by_storage


@dataclasses.dataclass(frozen=True)
class RowsProblem:
    """Rows of ``width`` elements brought to the experts or back. ``summed``: the results of a token are added up.
    ``quantized``: the rows are int8 with scales."""

    width: int
    dtype: str
    summed: bool = True
    quantized: bool = False


def _can_route(problem: RouteProblem, machine: Machine) -> Eligibility:
    reason = route.why_not(problem.spec)
    if reason is not None:
        return Eligibility(False, reason)
    spec = problem.spec
    how = f"one pass per token over {problem.experts} logits, {spec.k} kept by insertion; ties go to the lower id"
    return by_storage(problem.dtype, how)


def _can_drop(problem: RouteProblem, machine: Machine) -> Eligibility:
    limit = f"at most {problem.spec.capacity} pairs per expert"
    return Eligibility(True, f"{limit}; in one thread, a pair's place depends on all pairs before it")


def _can_dispatch(experts: int, machine: Machine) -> Eligibility:
    how = f"stable counting sort into {experts} experts, cut into blocks of {dispatch.BLOCK_ROWS} rows"
    return Eligibility(True, f"{how}; one thread, nothing is materialised as one-hot")


def _can_gather(problem: RowsProblem, machine: Machine) -> Eligibility:
    if problem.quantized:
        return Eligibility(False, "the rows are int8 and have scales and sums")
    how = f"rows of {problem.width} columns side by side for the grouped product"
    return by_storage(problem.dtype, how, sums=False)


def _can_gather_quantized(problem: RowsProblem, machine: Machine) -> Eligibility:
    if not problem.quantized:
        return Eligibility(False, "the rows are not int8")
    return Eligibility(True, f"int8 rows of {problem.width} columns, with scales and sums, side by side")


def _can_quantize(problem: RowsProblem, machine: Machine) -> Eligibility:
    return by_storage(
        problem.dtype, f"rows of {problem.width} columns to int8, every group by its own scale", sums=False
    )


def _products_reason(problem: GroupedProblem) -> str:
    sizes = "" if problem.uniform else "experts differ in format or size: a table says where their tiles lie; "
    return f"{sizes}{'; '.join(product.how for product in problem.multiplications)}"


def _can_multiply_gated(problem: GroupedProblem, machine: Machine) -> Eligibility:
    if not problem.gated:
        return Eligibility(False, "there is no gate in this product")
    return Eligibility(True, f"gate and up columns share a tile; {_products_reason(problem)}")


def _can_multiply(problem: GroupedProblem, machine: Machine) -> Eligibility:
    if problem.gated:
        reason = f"the gate would need a product and a result of {problem.width} columns per pair of its own"
        return Eligibility(False, reason)
    return Eligibility(True, _products_reason(problem))


def _can_combine(problem: RowsProblem, machine: Machine) -> Eligibility:
    if not problem.summed:
        return Eligibility(False, "the operator keeps the results of a token apart")
    return by_storage(problem.dtype, f"{problem.width} columns, summed in the order of the slots, no atomics")


def _can_separate(problem: RowsProblem, machine: Machine) -> Eligibility:
    if problem.summed:
        return Eligibility(False, "the operator sums the results of a token")
    return by_storage(problem.dtype, f"{problem.width} columns per pair of token and slot, not summed", sums=False)


ROUTE = (Kernel("route", "weights[T, k], experts[T, k] = route(logits[T, E])", _can_route),)
CAPACITY = (Kernel("capacity", "drops pairs beyond their expert's capacity, later slots first", _can_drop),)
DISPATCH = (Kernel("dispatch", "order[T * k] = pairs of token and slot sorted by expert", _can_dispatch),)
GATHER = (
    Kernel("gather_quantized", "rows[r] = quantized x[order[r] // k]", _can_gather_quantized),
    Kernel("gather", "rows[r] = x[order[r] // k]", _can_gather),
)
QUANTIZE = (Kernel("quantize_rows", "q[r] = round(x[r] / scale), scale = largest of a group / 127", _can_quantize),)
PRODUCTS = (
    Kernel(
        "grouped_gemm_gated",
        "out[r] = activation(rows[r] @ gate[e] + bias) * (rows[r] @ up[e] + bias), e the expert of row r",
        _can_multiply_gated,
    ),
    Kernel("grouped_gemm", "out[r] = activation(rows[r] @ weight[e] + bias[e]), e the expert of row r", _can_multiply),
)
RESULTS = (
    Kernel("combine", "y[t] = sum over slots of weights[t, slot] * pairs[t, slot]", _can_combine),
    Kernel("separate", "y[t, slot] = pairs[t, slot]; 0 where the slot has no expert", _can_separate),
)
