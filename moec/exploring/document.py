"""The document of the explorer: one versioned JSON value, which ``moec inspect --json`` prints and the page shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moec.exploring.experts import experts, pairs
from moec.exploring.layers import layers
from moec.exploring.passes import passes
from moec.exploring.roofline import roofline
from moec.exploring.streaming import streaming
from moec.exploring.subject import Subject
from moec.exploring.texts import texts
from moec.exploring.timeline import timeline

SCHEMA, VERSION = "moec.explorer", 1

SECTIONS: Mapping[str, Callable[[Subject], Any]] = {
    "experts": experts,
    "layers": layers,
    "pairs": pairs,
    "passes": passes,
    "roofline": roofline,
    "simulation": lambda subject: subject.simulation,
    "streaming": lambda subject: streaming(subject.artifact),
    "texts": texts,
    "timeline": timeline,
}
"""Sections that are added to an artifact's description, by name. A section without content is None or empty."""


def document(subjects: Sequence[Subject], title: str | None = None, **others: Any) -> dict[str, Any]:
    """Describe artifacts in one document. An artifact with programs for several architectures is shown as several.

    ``title``: of the report, by default the artifacts' names. ``others``: sections of the whole report (a sweep, an
    evaluation).
    """
    named = ", ".join(subject.title for subject in subjects) if title is None else title
    artifacts = [_record(program) for subject in subjects for program in subject.programs()]
    return {"schema": SCHEMA, "version": VERSION, "title": named, "artifacts": artifacts, **others}


def _record(subject: Subject) -> dict[str, Any]:
    sections = {name: section(subject) for name, section in SECTIONS.items()}
    return {"title": subject.title, **subject.description, **sections}
