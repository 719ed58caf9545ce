"""Times of a design's layers, from the cycles that were estimated when it was compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.errors import ArtifactError
from moec.targets.kind import LayerEstimate

_ENDS = ("embedding", "head")


def layer_estimate(projects: Sequence[Mapping[str, Any]]) -> LayerEstimate:
    """Read the cycles of each layer of a whole model, or of each block that is a project of its own. Raises
    ArtifactError for reports that another version of moec wrote."""
    nodes: dict[str, float] = {}
    ends: dict[str, float] = {}
    try:
        for project in projects:
            report = project["report"]
            estimate = report["estimate"]
            seconds = 1 / (estimate["clock_megahertz"] * 1e6)
            cycles = estimate["cycles"]
            layers = cycles.get("layers", ())
            inner = [layer["cycles"] * seconds for layer in layers if layer["kind"] not in _ENDS]
            names = [layer["node"] for layer in report["layers"]] if layers else [report["node"]]
            nodes |= dict(zip(names, inner if layers else [cycles["total"] * seconds], strict=True))
            ends |= {layer["kind"]: layer["cycles"] * seconds for layer in layers if layer["kind"] in _ENDS}
        boards = dict.fromkeys(project["report"]["estimate"]["board"] for project in projects)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ArtifactError(
            f"the report of a project has no cycles of layers ({error!r}): another version of moec wrote it; compile "
            "the model again with this moec"
        ) from None
    return LayerEstimate(f"{', '.join(boards)}, cycles estimated", "one call", nodes, ends)
