"""Section ``streaming``: memory that a model takes whose weights are larger, and its predicted speed."""

from __future__ import annotations

from typing import Any

from moec.runtime.artifact import Artifact
from moec.tools.stream_speed import predict_speed, stream_plan


def streaming(artifact: Artifact) -> dict[str, Any] | None:
    """Describe streaming as plain data: bytes that stay and bytes that are streamed, the experts that are read first
    (layer, expert), tables that are read by rows, and, of a model with experts, the predicted speed, for which memory
    and disk are measured. Returns None where all weights are in memory."""
    resident = artifact.manifest.resident
    if resident is None:
        return None
    plan = stream_plan(artifact)
    return {
        "resident": resident,
        "pinned": plan.pinned,
        "experts": plan.experts,
        "room": resident - plan.pinned,
        "least": plan.least,
        "tables": [{"name": entry.name, "rows": entry.shape[0], "bytes": entry.bytes} for entry in plan.tables],
        "layers": [{"name": spec.name, "experts": spec.experts, "chosen": spec.chosen} for spec in plan.streamed],
        "measured_shares": any(spec.shares for spec in plan.streamed),
        "order": plan.first,
        "replaceable": sum(spec.replaceable for spec in plan.streamed),
        "speed": predict_speed(artifact).as_data() if plan.layers else None,
    }
