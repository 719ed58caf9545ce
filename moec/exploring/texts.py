"""Section ``texts``: each kernel at all its levels."""

from __future__ import annotations

from typing import Any

from moec.exploring.kernel_levels import kernel_levels
from moec.exploring.subject import Subject


def texts(subject: Subject) -> dict[str, dict[str, Any]]:
    """Return what :func:`~moec.exploring.kernel_levels.kernel_levels` says of each kernel and design, by its name."""
    named = (*subject.description["kernels"], *subject.description["projects"])
    return {part["name"]: kernel_levels(subject, part["name"]) for part in named}
