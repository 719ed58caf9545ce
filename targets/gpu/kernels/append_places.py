"""Places at which append writes: one start, a start for each index of the first axis, or a place for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.lowering.paged_tensors import AppendProblem


def placed(
    problem: AppendProblem, before: Sequence[Any], S: Any, attributes: Mapping[str, object], write: Any
) -> tirx.PrimFunc:
    """The kernel of :func:`moec.targets.gpu.kernels.append.append`, with its parameters.

    ``before``, ``S``: sizes of ``new`` up to the growing axis. ``write``: macro of (new, pages, place_of), with the
    handles of two tensors and a function from the indices of an entry of ``new`` to its first place, to which its index
    along the growing axis is added, and a condition on the sum for it to be written."""
    rank = len(before)

    if problem.by_entry:

        @T.prim_func
        def kernel(places_handle: T.handle, new_handle: T.handle, pages_handle: T.handle):
            T.func_attr(attributes)
            places = T.match_buffer(places_handle, (S,), problem.starts)
            write(
                new_handle,
                pages_handle,
                lambda at: (T.cast(places[at[rank]], "int64") - T.cast(at[rank], "int64"), lambda number: number >= 0),
            )

    elif problem.starts:

        @T.prim_func
        def kernel(length_handle: T.handle, starts_handle: T.handle, new_handle: T.handle, pages_handle: T.handle):
            T.func_attr(attributes)
            length = T.match_buffer(length_handle, (1,), "int64")
            starts = T.match_buffer(starts_handle, before[:1], problem.starts)
            write(
                new_handle,
                pages_handle,
                lambda at: (T.cast(starts[at[0]], "int64"), lambda number: T.And(number >= 0, number < length[0])),
            )

    else:

        @T.prim_func
        def kernel(start_handle: T.handle, new_handle: T.handle, pages_handle: T.handle):
            T.func_attr(attributes)
            start = T.match_buffer(start_handle, (1,), "int64")
            write(new_handle, pages_handle, lambda at: (start[0], lambda number: number >= 0))

    return kernel
