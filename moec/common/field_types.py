"""Types of the fields of a dataclass."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, get_type_hints


@functools.cache
def field_types(kind: type) -> Mapping[str, Any]:
    """Return the types of a dataclass' fields, by name. They are evaluated once in a process: Python evaluates their
    text anew at each call."""
    return get_type_hints(kind)
