"""Rewriting of generated CUDA C to text as a kernel's author would write it. It happens before nvcc compiles the text,
so that people read exactly what is compiled."""

from __future__ import annotations

from moec.common.short_lines import with_short_lines
from moec.targets.cuda.text.helper_names import with_helper_names
from moec.targets.cuda.text.plain_expressions import with_plain_expressions
from moec.targets.cuda.text.plain_scalars import with_plain_scalars
from moec.targets.cuda.text.register_arrays import with_register_arrays
from moec.targets.cuda.text.shared_arrays import with_shared_arrays
from moec.targets.cuda.text.step_comments import with_step_comments

_REWRITES = (
    with_step_comments,
    with_plain_scalars,
    with_shared_arrays,
    with_register_arrays,
    with_helper_names,
    # The others read TVM's parentheses and find calls in one line.
    with_plain_expressions,
    with_short_lines,
)


def finished(source: str) -> str:
    """The CUDA C that TVM generated, rewritten: named arrays in shared memory, variables for single numbers, arrays for
    registers, short names of helpers, few parentheses and casts, and short lines."""
    for rewrite in _REWRITES:
        source = rewrite(source)
    return source
