"""Record of what was tried on a block, for people."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from moec.common.errors import one_line
from moec.passes.framework.evidence import Attempt, Evidence, cut


@dataclasses.dataclass(frozen=True)
class Trail:
    """The attempts on one block. ``name`` is the reading of it that is tried now."""

    name: str = ""
    attempts: list[Attempt] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Trail]:
        """Context of a reading. If it fails before it has a proposal, the reason is an attempt, too."""
        trail, count = Trail(f"{self.name}, {name}" if self.name else name, self.attempts), len(self.attempts)
        try:
            yield trail
        except Exception as reason:
            if len(self.attempts) == count:
                trail.add(one_line(reason))
            raise

    def add(self, reason: str, proposal: str = "", proposals: int = 0, evidence: Evidence | None = None) -> None:
        self.attempts.append(Attempt(self.name, cut(reason), cut(proposal), proposals, evidence))
