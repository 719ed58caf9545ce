"""Options of loading an artifact."""

from __future__ import annotations

import dataclasses
import os
from typing import get_args

from moec.common.arguments import check_choice, check_flags, check_kind, check_optional_text, check_path
from moec.common.byte_counts import bytes_of
from moec.common.errors import MoecError
from moec.runtime.machine import check_threads
from moec.runtime.pages import Pages


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """Options of :func:`moec.load`, which explains them. Raises MoecError for invalid ones."""

    threads: int | None = None
    check_weights: bool = True
    pages: Pages = "auto"
    emulate: bool = False
    architecture: str | None = None
    cuda_graphs: bool = False
    resident: int | str | None = None
    prefer_resident: float = 0.0
    keep_counts: str | os.PathLike[str] | None = None
    rank: int | None = None
    stage: int | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_choice("pages", self.pages, get_args(Pages))
        check_flags(check_weights=self.check_weights, emulate=self.emulate, cuda_graphs=self.cuda_graphs)
        check_optional_text(architecture=self.architecture)
        if self.keep_counts is not None:
            check_path("keep_counts", self.keep_counts)
        if self.resident_bytes is not None and self.pages in ("mapped", "huge"):
            raise MoecError(
                f"resident is about experts that are read when they are selected, and pages is {self.pages!r}; leave "
                "one of them out"
            )
        check_kind("prefer_resident", self.prefer_resident, (int, float), "a share from 0 to 1")
        if not 0 <= self.prefer_resident <= 1:
            raise MoecError(f"prefer_resident is {self.prefer_resident}; expected a share from 0 to 1")

    @property
    def resident_bytes(self) -> int | None:
        """Most bytes of memory for weights; None for as many as compiled for."""
        return None if self.resident is None else bytes_of("resident", self.resident)


DEFAULTS = LoadOptions()
