"""Options of an export, checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from moec.common.arguments import check_optional_flag, check_optional_text, check_path, shown
from moec.common.errors import MoecError
from moec.common.progress import Progress


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of :func:`moec.export`, which explains them. Raises MoecError for values of another type."""

    passes: str | None = None
    example_inputs: Any = None
    dynamic_shapes: Any = None
    cache: bool | None = None
    experts: str | None = None
    linears: str | None = None
    tokenizer: str | os.PathLike[str] | None = None
    profile: str | os.PathLike[str] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_optional_text(passes=self.passes, experts=self.experts, linears=self.linears)
        check_optional_flag("cache", self.cache)
        if self.progress is not None and not callable(self.progress):
            raise MoecError(f"progress is {shown(self.progress)}; expected a function of one string, or None")
        for name in ("tokenizer", "profile"):
            if getattr(self, name) is not None:
                check_path(name, getattr(self, name))
