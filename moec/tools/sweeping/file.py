"""``sweep.json``: the results of a sweep, so that no variant has to run twice.

::

    {
     "version": 1,
     "variants": [{"key": {...}, "pipeline": "O2,...", "weight_bytes": ..., "qualities": {...}, ...}],
     "digest": "..."
    }

``key`` holds everything except the machine that the numbers depend on: hashes of the model, the data and the files that
the pipeline names, the pipeline with its levels written out, what was measured, the version of moec. ``digest`` shows
that moec wrote the file and nobody changed it; it is no signature.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

from moec.common.digested_json import digested_json, foreign_json
from moec.common.errors import MoecError
from moec.common.plain_files import parse_json
from moec.common.records import FieldRule, read_record
from moec.common.replacing import replacing
from moec.tools.evaluate import MetricValue, finite
from moec.tools.metrics import METRICS

VERSION = 2
NAME = "sweep.json"
_LARGEST = 256 << 20
_Milliseconds = Annotated[float, FieldRule(lambda number: 0 < number < math.inf, "a positive number")]
_Qualities = Annotated[
    dict[str, MetricValue],
    FieldRule(lambda values: bool(values) and values.keys() <= METRICS.keys(), f"values of {', '.join(METRICS)}"),
]


@dataclasses.dataclass(frozen=True)
class Times:
    """Median milliseconds of a variant and of the first one, which was timed in turns with it."""

    milliseconds: _Milliseconds
    first: _Milliseconds

    @property
    def share(self) -> float:
        """Time as a share of the first variant's."""
        return self.milliseconds / self.first


@dataclasses.dataclass(frozen=True)
class Variant:
    """Results of one pipeline. ``times``: by the sizes of the inputs, in words; ``artifact``: folder next to
    ``sweep.json`` that keeps it. The other fields are those of :class:`moec.tools.evaluate.Judged`."""

    key: dict[str, Any]
    pipeline: str
    weight_bytes: int
    expert_bits: float | None
    nan_outputs: int
    qualities: _Qualities
    times: dict[str, Times]
    artifact: str | None = None
    layer_errors: dict[str, float] = dataclasses.field(default_factory=dict)

    def compares_with(self, others: Sequence[Variant]) -> bool:
        """Whether the others were judged by the same metrics, and timed in the same cases."""
        mine = (self.qualities.keys(), self.times.keys())
        return all((other.qualities.keys(), other.times.keys()) == mine for other in others)


def read_variants(folder: pathlib.Path) -> list[Variant]:
    """Read the folder's ``sweep.json``; without such a file there are no variants. Raises MoecError for a file that
    moec did not write, or that was changed."""
    path = folder / NAME
    if not path.exists():
        return []
    why = foreign(path)
    if why is not None:
        raise MoecError(f"{path}: {why}; remove it or choose another folder")
    variants = parse_json(path.read_bytes()).get("variants")
    return read_record(list[Variant], _with_floats(variants), f"{path}: variants", "remove it")


def write_variants(folder: pathlib.Path, variants: Sequence[Variant]) -> None:
    """Replace ``sweep.json`` in one step. Raises MoecError where another file is there, or it cannot be written."""
    content = {"version": VERSION, "variants": [finite(dataclasses.asdict(variant)) for variant in variants]}
    with replacing(folder / NAME, foreign) as aside:
        aside.write_text(digested_json(content, indent=1), encoding="utf-8")


def foreign(path: pathlib.Path) -> str | None:
    """Explain why a file is not an unchanged ``sweep.json`` of moec. Returns None where it is one. Raises OSError."""
    why = foreign_json(path, _LARGEST)
    version = None if why else parse_json(path.read_bytes()).get("version")
    return why or (None if version == VERSION else f"is of version {version}, not {VERSION}")


def _with_floats(data: Any) -> Any:
    """Undo :func:`moec.tools.evaluate.finite`."""
    if isinstance(data, dict):
        return {key: _with_floats(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_floats(value) for value in data]
    return float(data) if data in ("nan", "inf", "-inf") else data
