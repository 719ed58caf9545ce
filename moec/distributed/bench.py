"""Times of sessions on several ranks: each rank runs one, all at once."""

from __future__ import annotations

from typing import Any

from moec.distributed.model import RankedModel
from moec.runtime.model import CompiledModel
from moec.tools import bench_session as tool


def bench_session(model: CompiledModel, **options: Any) -> dict[str, Any]:
    """Time sessions as :func:`moec.tools.bench_session.bench_session`. On ranks each has a session of its own, and the
    result is this rank's, with the number of ``ranks``."""
    if not isinstance(model, RankedModel):
        return tool.bench_session(model, **options)
    with model.apart():
        return {**tool.bench_session(model, **options), "ranks": model.ranks}
