"""Numbers of bytes as people write them: ``8GiB``, ``512 MiB``, ``6GB``."""

from __future__ import annotations

import re

from moec.common.arguments import check_kind
from moec.common.errors import MoecError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)


def bytes_of(name: str, value: int | str) -> int:
    """Parse a number of bytes; messages call it ``name``. Raises MoecError for other text, and for 0."""
    check_kind(name, value, (int, str), "a number of bytes, or a text such as '8GiB'")
    match = _COUNT.fullmatch(str(value).strip())
    count = 0 if match is None else int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if count < 1:
        raise MoecError(f"{name} is {value!r}; expected a number of bytes above 0, such as 8GiB, 512MiB or 6GB")
    return count
