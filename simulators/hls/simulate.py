"""Simulation of an artifact's projects: are results right, and do cycles agree with the estimates?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moec.common.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.manifest import ProjectEntry
from moec.simulators.hls.instrument import Style
from moec.simulators.hls.simulator import SimulationError, TimedResult, simulate_timed
from moec.targets.hls.design.numbers import MOST_STAGES


def simulate(
    artifact: Artifact,
    project: str | None = None,
    *,
    memory_share: float | None = None,
    fifo_depth: int | None = None,
    pipeline_depth: int | None = None,
    pipeline_style: Style | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> list[dict[str, Any]]:
    """Run the testbench of one project, or of all. Returns a dictionary of plain data per project.

    - ``passed``, with a ``message`` if not, or ``cycles``, ``processes`` and ``channels`` if so.
    - ``estimated``: cycles of a full call with the loads of the calibration data.
    - ``calls`` of a decoder's testbench: ``tokens`` after ``past`` others, with estimated ``cycles`` and ``simulated``
      ones.

    The parameters replace what the project declares.

    - ``memory_share``: beats per cycle and port; by default those of the part's memory.
    - ``fifo_depth``: of all channels.
    - ``pipeline_depth``: stages of all pipelines after their first. By default a project runs twice: with the stages of
      the estimates, and with the most that channels are deep enough for, which shows that nothing locks up.
    - ``pipeline_style``: of all pipelines.

    Raises MoecError where the artifact has no such project, and where no compiler or no ap_types headers are found.
    """
    projects = artifact.manifest.projects
    if not projects:
        target = artifact.manifest.target
        raise MoecError(f"{artifact.where}: is compiled for {target} and holds no project to simulate; use moec run")
    chosen = [candidate for candidate in projects if project in (None, candidate.name)]
    if not chosen:
        names = ", ".join(candidate.name for candidate in projects)
        raise MoecError(f"{artifact.where}: has no project {project!r}; it has {names}")
    results = []
    for candidate in chosen:
        progress(f"simulating {candidate.name}")
        settings = {"fifo_depths": fifo_depth, "pipeline_style": pipeline_style}
        usual = candidate.report["estimate"]["stages"]
        depths = (usual, MOST_STAGES) if pipeline_depth is None else (pipeline_depth,)
        results.append(_simulate(artifact, candidate, memory_share, depths, settings))
    return results


def _simulate(
    artifact: Artifact,
    project: ProjectEntry,
    memory_share: float | None,
    pipeline_depths: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Simulate a project once per pipeline depth. The result is that of the first depth, or the first failure."""
    report = project.report
    described = {"name": project.name, "node": report["node"], "channels_of": report["channels"]}
    ports, layers = report["estimate"]["ports"], report["estimate"]["cycles"].get("layers")
    share = ports["share"] if memory_share is None else memory_share
    described |= {
        "tokens": report["vectors"],
        "estimated": report["estimate"]["cycles"]["total"],
        "memory_share": share,
        "ports": ports["of"],
        "pipeline_depths": list(pipeline_depths),
        **({} if layers is None else {"layers": layers}),
    }
    files = artifact.project_files(project)
    try:
        timed, *_ = [
            simulate_timed(
                files, memory_share=share, total_share=ports["total_share"], pipeline_depth=depth, **settings
            )
            for depth in pipeline_depths
        ]
    except SimulationError as error:
        return {**described, "passed": False, "message": f"{error.kind}: {error}", "details": error.details}
    if "calls" in report:
        described["calls"] = timed_calls(report["calls"], timed, 0 if layers is None else len(layers))
    return {**described, "passed": True, **dataclasses.asdict(timed)}


def timed_calls(calls: Sequence[Mapping[str, Any]], timed: TimedResult, layers: int) -> list[dict[str, Any]]:
    """The calls of a testbench with their simulated cycles. After each call of a decoder, the testbench also runs its
    ``layers`` one by one; a block has 0 and runs all calls a second time. Further runs are skipped."""
    cycles = (timed.cycles, *timed.later_cycles)[:: 1 + layers][: len(calls)]
    return [{**call, "simulated": simulated} for call, simulated in zip(calls, cycles, strict=True)]
