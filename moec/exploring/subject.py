"""The subject of a section: one artifact, with what was measured of it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from moec.exploring.model_nodes import ModelNodes, read_model
from moec.exploring.node_origins import imported_nodes
from moec.ir.text import parse_model
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.description import describe
from moec.tools.tracing.trace import Trace


@dataclasses.dataclass(frozen=True)
class Subject:
    """One artifact that a report shows.

    ``architecture``: show only the program for it. ``profile``: a ``.moeprof`` file of the same model. ``bench``: what
    ``moec bench --json`` printed for this artifact. ``simulation``: what ``moec simulate --json`` printed for it.
    ``may_measure``: whether sections may measure the limits of this machine, which takes seconds.
    """

    title: str
    artifact: Artifact
    architecture: str | None = None
    profile: pathlib.Path | None = None
    bench: dict[str, Any] | None = None
    simulation: list[Any] | None = None
    trace: Trace | None = None
    may_measure: bool = False

    @classmethod
    def open(cls, path: pathlib.Path, **measured: Any) -> Subject:
        """Open the artifact at ``path``. ``measured``: other fields. Raises ArtifactError."""
        return cls(path.name, open_artifact(path, check_weights=False), **measured)

    def programs(self) -> Iterator[Subject]:
        """Go through the programs of the artifact as subjects of their own, because each has kernels of the same
        names."""
        architectures = [program.architecture for program in self.artifact.manifest.programs]
        if self.architecture is not None or len(architectures) < 2:
            yield self
            return
        for architecture in architectures:
            yield dataclasses.replace(self, title=f"{self.title}, {architecture}", architecture=architecture)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """The artifact's manifest as plain data."""
        return describe(self.artifact, self.architecture)

    @functools.cached_property
    def graph(self) -> ir.Graph | None:
        """The graph after the last pass, without the numbers of weights; None where the artifact does not hold it."""
        stages = self.artifact.manifest.stages
        return parse_model(self.artifact.text(stages[-1]["file"])).graph if stages else None

    @functools.cached_property
    def models(self) -> dict[str, ModelNodes]:
        """The model after the import and each pass that changed it, by their files. Empty where the artifact holds
        none."""
        files = dict.fromkeys(stage["file"] for stage in self.artifact.manifest.stages)
        return {file: read_model(self.artifact.text(file)) for file in files}

    @functools.cached_property
    def imported_nodes(self) -> dict[str, frozenset[str]]:
        """Imported nodes that each node of the last model was made of."""
        return imported_nodes([*self.models.values()])
