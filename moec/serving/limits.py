"""ServerLimits of a server, so that no request takes what belongs to others."""

from __future__ import annotations

import dataclasses

from moec.common.arguments import check_kind
from moec.common.errors import MoecError


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """ServerLimits of a server; each is 1 or more.

    ``sequences``: the most that are computed together. ``tokens``: the most that all of them hold. ``new_tokens``: the
    most of a text, and how many a request gets that does not say. ``waiting``: requests that may wait for room.
    ``body_bytes``: of a request. ``seconds``: until a request is answered. ``grace_seconds``: for requests in progress
    when the server is told to stop. Raises MoecError for other numbers.
    """

    sequences: int = 8
    tokens: int = 32_768
    new_tokens: int = 1024
    waiting: int = 64
    body_bytes: int = 1 << 20
    seconds: int = 600
    grace_seconds: int = 20

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            check_kind(field.name, number, int, "a whole number from 1 up")
            if number < 1:
                raise MoecError(f"{field.name} is {number}; expected 1 or more")
