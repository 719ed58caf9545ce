"""Replacements of Python's ``min`` and ``max`` for sizes that are dynamic.

They return an expression of the sizes. Python's own compare them, and torch.export then fixes one result
(``topk(min(2048, length))``).
"""

from __future__ import annotations

import builtins
import functools
from typing import Any


def smallest(*values: Any, **options: Any) -> Any:
    """Replacement of ``min``."""
    import torch

    return functools.reduce(torch.sym_min, values) if _are_sizes(values) else builtins.min(*values, **options)


def largest(*values: Any, **options: Any) -> Any:
    """Replacement of ``max``."""
    import torch

    return functools.reduce(torch.sym_max, values) if _are_sizes(values) else builtins.max(*values, **options)


def _are_sizes(values: tuple[Any, ...]) -> bool:
    """Whether the values are two or more integers, some of them dynamic."""
    import torch

    kinds = {type(value) for value in values}
    return len(values) > 1 and torch.SymInt in kinds and kinds <= {int, torch.SymInt}
