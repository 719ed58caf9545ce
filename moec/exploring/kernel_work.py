"""Work of one call of a kernel, and the weights that it reads, by the model's sizes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moec.common.dtypes import DTYPES
from moec.common.errors import MoecError
from moec.common.kernel_sizes import LARGEST_WORK, evaluate, kernel_sizes, tensor_bytes
from moec.common.weight_reads import WeightReads, counted_reads, sized_reads
from moec.common.work import Argument, GroupedWork, SizedWork, Work, parse_work, work_of


@dataclasses.dataclass(frozen=True)
class CallWork:
    """The ``work`` of a call. ``reads``: the weights of a product; None for other kernels."""

    work: Work
    reads: WeightReads | None = None


def call_work(kernel: Mapping[str, Any], model: Mapping[str, int], where: str) -> CallWork | None:
    """Compute the work of a call. ``kernel``: its record; ``model``: the model's sizes. Returns None where the call's
    sizes follow from computed values. A token selects experts evenly, and a lookup reads as much as it returns."""
    sizes = kernel_sizes(kernel, model, where)
    try:
        shapes = [[evaluate(str(size), sizes, where) for size in each["shape"]] for each in kernel["parameters"]]
        if kernel["sized_work"] is not None:
            return _sized(kernel, SizedWork(**kernel["sized_work"]), sizes, where)
    except MoecError:
        return None
    arguments = [
        Argument(
            np.broadcast_to(np.zeros((), DTYPES[each["dtype"]]), shape),
            all(isinstance(size, int) for size in each["shape"]),
        )
        for each, shape in zip(kernel["parameters"], shapes, strict=True)
    ]
    return _counted(kernel, arguments, where)


def _sized(kernel: Mapping[str, Any], sized: SizedWork, sizes: Mapping[str, int], where: str) -> CallWork:
    moved = tensor_bytes(kernel["parameters"], sized.moved, sizes, where)
    work = Work(evaluate(sized.operations, sizes, where, LARGEST_WORK), moved, sized.arithmetic)
    return CallWork(work, sized_reads(kernel, kernel["parameters"], sized.moved, sizes, where))


def _counted(kernel: Mapping[str, Any], arguments: list[Argument], where: str) -> CallWork:
    counted = parse_work(kernel["work"], where)
    if isinstance(counted, GroupedWork):
        arguments = _with_rows(arguments, kernel["attributes"]["experts"])
    if kernel["op"] == "Gather":
        most = arguments[-1].array.nbytes
        return CallWork(Work(None, sum(min(argument.array.nbytes, most) for argument in arguments)))
    work = work_of(counted, arguments)
    return CallWork(work, counted_reads(counted, work, arguments, kernel["attributes"].get("weight_bits", ())))


def _with_rows(arguments: list[Argument], experts: int) -> list[Argument]:
    """Fill in the list of blocks, (expert, first row, rows), and their number, for rows that reach as many experts as
    they can."""
    numbers = np.dtype(np.int32)
    order = next(each for each in arguments if each.array.dtype == numbers and each.array.ndim == 1)
    place = next(i for i, each in enumerate(arguments) if each.array.dtype == numbers and each.array.shape[1:] == (3,))
    rows = order.array.size
    reached = np.linspace(0, experts - 1, min(rows, experts)).astype(np.int32)
    shares = np.diff(np.linspace(0, rows, len(reached) + 1).astype(np.int32))
    blocks = np.stack([reached, np.zeros_like(reached), shares], axis=1)
    filled = [Argument(blocks, False), Argument(np.array([len(blocks)], np.int32), False)]
    return [*arguments[:place], *filled, *arguments[place + 2 :]]
