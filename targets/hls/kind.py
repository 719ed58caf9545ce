"""The FPGA as a kind of target: its options, commands and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moec.targets.kind import CommandResult, DesignText, Kind, LayerEstimate, Options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moec.runtime.manifest import ProjectEntry
    from moec.targets.base import Target


class HlsKind(Kind):
    """Projects of HLS C++ for a part."""

    name = "hls"
    examples = ("hls:zcu102",)
    tools = ("vitis_hls", "v++")

    def target(self, name: str, options: Options | None = None) -> Target:
        from moec.targets.hls.options import HlsOptions
        from moec.targets.hls.target import HlsTarget

        assert options is None or isinstance(options, HlsOptions)
        return HlsTarget.create(name, options)

    def read_options(self) -> Callable[..., Options | None]:
        from moec.targets.hls.command_line import read_options

        return read_options

    def commands(self) -> Sequence[Callable[..., CommandResult]]:
        from moec.targets.hls.command_line import simulate

        return [simulate]

    def design_text(self, project: ProjectEntry) -> DesignText:
        report = project.report
        nodes = [layer["node"] for layer in report.get("layers", ())] or [report["node"]]
        return DesignText("hls", f"{project.folder}/src/model.cpp", tuple(nodes))

    def weight_types(self, description: Mapping[str, Any]) -> Mapping[str, str]:
        reports = [project["report"].get("weights", {}) for project in description["projects"]]
        return {name: stored for weights in reports for name, stored in weights.items()}

    def layer_estimate(self, description: Mapping[str, Any]) -> LayerEstimate | None:
        from moec.targets.hls.layer_times import layer_estimate

        return layer_estimate(description["projects"])

    def tables(self, description: Mapping[str, Any]) -> Iterable[RenderableType]:
        from moec.common.errors import ArtifactError
        from moec.targets.hls.tables import project_tables

        renderables: list[RenderableType] = []
        for project in description["projects"]:
            try:
                renderables += project_tables(project)
            except KeyError as error:
                raise ArtifactError(
                    f"the report of project {project['name']!r} has no {error}: another version of moec wrote it; "
                    "compile the model again with this moec"
                ) from None
        return renderables
