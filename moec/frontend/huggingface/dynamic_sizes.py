"""Python's ``min`` and ``max`` of sizes that are dynamic: an expression of them, where Python itself would compare them
and thereby have torch.export decide for one way (``topk(min(2048, length))``)."""

from __future__ import annotations

import builtins
import functools
from typing import Any


def smallest(*values: Any, **options: Any) -> Any:
    """As ``min``."""
    import torch

    return functools.reduce(torch.sym_min, values) if _are_sizes(values) else builtins.min(*values, **options)


def largest(*values: Any, **options: Any) -> Any:
    """As ``max``."""
    import torch

    return functools.reduce(torch.sym_max, values) if _are_sizes(values) else builtins.max(*values, **options)


def _are_sizes(values: tuple[Any, ...]) -> bool:
    """Whether some of several integers are dynamic."""
    import torch

    kinds = {type(value) for value in values}
    return len(values) > 1 and torch.SymInt in kinds and kinds <= {int, torch.SymInt}
