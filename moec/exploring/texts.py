"""Section ``texts``: each kernel's text at all its levels."""

from __future__ import annotations

from typing import Any

from moec.exploring.subject import Subject


def texts(subject: Subject) -> dict[str, list[dict[str, Any]]]:
    """Return the levels of each kernel by its name, from the source down to machine code."""
    return {
        kernel["name"]: [
            {"level": level, "text": subject.artifact.text(file)} for level, file in kernel["sources"].items()
        ]
        for kernel in subject.description["kernels"]
    }
