"""Projects that another tool builds, as ``moec.compile`` returns them for an FPGA."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from moec.common.arguments import check_path
from moec.common.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.artifact_folder import copy_artifact
from moec.runtime.description import describe
from moec.runtime.entries import RemarkEntry


class CompiledProjects:
    """Sources of a model that another tool builds into hardware or a program. ``artifact``: their artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return f"<CompiledProjects for {self.target} at {str(self.path)!r}: {names}; moec simulate runs their tests>"

    @property
    def target(self) -> str:
        """Target they were made for, such as ``hls:zcu102``."""
        return self.artifact.manifest.target

    @property
    def path(self) -> pathlib.Path:
        """Folder of the artifact; the project ``name`` is its folder ``projects/name``."""
        return self.artifact.folder

    @property
    def names(self) -> Sequence[str]:
        return [project.name for project in self.artifact.manifest.projects]

    @property
    def remarks(self) -> list[RemarkEntry]:
        """Remarks of the passes: dicts of ``pass_name``, ``subject``, ``message`` and ``severity``."""
        return self.artifact.manifest.remarks

    def report(self, name: str) -> dict[str, Any]:
        """Return the choices of a project's design and their reasons. Raises MoecError for an unknown name."""
        for project in self.artifact.manifest.projects:
            if project.name == name:
                return project.report
        raise MoecError(f"{self.artifact.where}: has no project {name!r}; its projects: {', '.join(self.names)}")

    def run(self, *_inputs: Any, **_named: Any) -> None:
        """Raise MoecError: nothing runs here before another tool has built it."""
        raise MoecError(
            f"{self.artifact.where}: holds projects for {self.target}, which do not run here; simulate them: moec "
            f"simulate {self.artifact.where}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact to a folder, or to one zip when the path ends in ``.zip``. Raises ArtifactError."""
        check_path("path", path)
        copy_artifact(self.artifact, path)

    def describe(self) -> dict[str, Any]:
        """Describe the artifact as plain data: target, inputs, outputs, MoE blocks, projects, passes, remarks."""
        return describe(self.artifact)
