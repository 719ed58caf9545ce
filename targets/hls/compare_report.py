#!/usr/bin/env python3
"""Compares the report of an HLS synthesis with what moec had estimated.

    python3 compare_report.py [csynth.xml [estimate.json]] [--save FILE]

Vitis HLS writes the report to ``<component>/hls/syn/report/csynth.xml`` (``<solution>/syn/report/csynth.xml`` in older
versions); without an argument the script searches for it below its own folder. Every generated project carries this
file, so it needs only Python. ``--save`` writes the figures of both to a file with which ``moec compile --calibrated``
corrects its estimates.

Four findings invalidate the estimates and end the script with exit code 1: a loop with an initiation interval above 1,
a pipeline with more stages than channels are deep enough for, which might lock up, a clock that is not reached, and
more resources than the part has. No factor corrects the first two, so nothing is saved then. A file that is no report
or no estimate: exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

TAGS = {"dsp": ("DSP", "DSP48E"), "bram18": ("BRAM_18K",), "uram": ("URAM",), "lut": ("LUT",), "flip_flops": ("FF",)}
"""The tags of a report by the names of the estimate; older versions say DSP48E."""
STRUCTS = {"experts_layer": "experts_block", "attention_layer": "attention_block"}
"""The structs that the processes of each kernel of a whole model are instantiated with."""
ROUGH = ("lut", "flip_flops")
"""Resources that estimates only model roughly."""
_LOOP_MODULE = "_Pipeline_"
"""A part of the names of modules that are loops of another module, whose counts include theirs."""
_MOST_BYTES = 64 << 20
_COUNT = re.compile(r"[0-9]{1,12}")
_FORMAT = "moec calibration"


class ReportError(Exception):
    """A file is not what it should be."""


@dataclasses.dataclass(frozen=True)
class SynthesisReport:
    """The figures of a synthesis report. ``cycles``: best and worst case, None where synthesis knows no bound. Clock
    periods are in nanoseconds. ``slow_loops``: initiation intervals above 1, by the loop's name; ``deep_loops``: stages
    of all loops, by name; ``dsp_by_module``: without modules that are loops of others.
    """

    top: str
    part: str
    target_period: float
    estimated_period: float
    clock_uncertainty: float
    cycles: tuple[int | None, int | None]
    resources: dict[str, int]
    available: dict[str, int]
    slow_loops: dict[str, int]
    deep_loops: dict[str, int]
    dsp_by_module: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison, with a ``note`` on its meaning."""

    name: str
    estimated: str
    reported: str
    note: str


def read_report(text: str) -> SynthesisReport:
    """Read a synthesis report. Raises ReportError for another text. A text that declares entities, as no report does,
    is not parsed."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ReportError("the report declares a document type; expected csynth.xml of Vitis HLS, which has none")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ReportError(f"the report is no XML ({error}); expected csynth.xml of Vitis HLS") from error
    latency = "PerformanceEstimates/SummaryOfOverallLatency"
    return SynthesisReport(
        top=_text(root, "UserAssignments/TopModelName"),
        part=_text(root, "UserAssignments/Part"),
        target_period=_number(root, "UserAssignments/TargetClockPeriod"),
        estimated_period=_number(root, "PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod"),
        clock_uncertainty=_number(root, "UserAssignments/ClockUncertainty", otherwise=0.0),
        cycles=(_cycles(root, f"{latency}/Best-caseLatency"), _cycles(root, f"{latency}/Worst-caseLatency")),
        resources=_resources(root, "AreaEstimates/Resources"),
        available=_resources(root, "AreaEstimates/AvailableResources"),
        slow_loops={name: interval for name, interval in _loops(root, "PipelineII") if interval > 1},
        deep_loops=dict(_loops(root, "PipelineDepth")),
        dsp_by_module=dict(_dsp_by_module(root)),
    )


def compare(report: SynthesisReport, estimate: dict[str, Any]) -> list[Row]:
    """Compare a report with an estimate, given as ``Estimate.as_dict``. Raises ReportError where the estimate lacks
    something."""
    try:
        rows = [_part_row(report, estimate), _clock_row(report, estimate), _cycles_row(report, estimate["cycles"])]
        for name in TAGS:
            rows.append(_resource_row(name, report, estimate["resources"][name]))
        for process, dsps in estimate["dsp_by_process"].items():
            rows.extend(_process_rows(process, dsps, report))
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        raise ReportError(f"the estimate lacks {error}; expected estimate.json of a project that moec made") from error
    return rows


def broken_assumptions(report: SynthesisReport, most_stages: int) -> list[str]:
    """Reasons why estimates do not hold for the synthesised design; empty if they do. ``most_stages``: of a pipeline
    that channels are deep enough for."""
    reasons = wrong_loops(report, most_stages)
    if report.estimated_period > report.target_period - report.clock_uncertainty:
        reasons.append(
            f"the clock needs {report.estimated_period:g} ns; "
            f"there are {report.target_period:g} less {report.clock_uncertainty:g} for uncertainty"
        )
    for name, used in report.resources.items():
        if used > report.available.get(name, used):
            reasons.append(f"{used} {TAGS[name][0]} are needed; the part has {report.available[name]}")
    return reasons


def wrong_loops(report: SynthesisReport, most_stages: int) -> list[str]:
    """Loops whose initiation interval or stages break an assumption of the design, each with the reason."""
    slow = [
        f"loop {name} starts an iteration every {interval} cycles; estimates count on every cycle"
        for name, interval in report.slow_loops.items()
    ]
    return slow + [
        f"loop {name} is a pipeline of {stages} stages; channels are deep enough for {most_stages}: it might lock up"
        for name, stages in report.deep_loops.items()
        if stages > most_stages
    ]


def calibration(report: SynthesisReport, estimate: dict[str, Any]) -> dict[str, Any]:
    """A calibration as plain data: estimated counts before any correction, and reported ones. Stages are counted
    without a pipeline's first, as in estimates."""
    corrected = estimate.get("factors", {})
    needed = report.estimated_period + report.clock_uncertainty
    return {
        "format": _FORMAT,
        "top": report.top,
        "part": report.part.replace(":", ""),
        "estimated": {name: estimate["resources"][name] / corrected.get(name, 1) for name in TAGS},
        "reported": report.resources,
        "stages": [max(1, stages - 1) for stages in report.deep_loops.values()],
        "clock_megahertz": 1e3 / needed if needed > report.target_period else None,
    }


def table(rows: list[Row]) -> str:
    """The rows as text, in columns."""
    cells = [("", "estimated", "reported", ""), *(dataclasses.astuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]  # noqa: B905
    return "\n".join(lines)


def _part_row(report: SynthesisReport, estimate: dict[str, Any]) -> Row:
    same = report.part.lower().replace(":", "") == estimate["part"].lower()  # older versions put colons between
    return Row("part", estimate["part"], report.part, "" if same else "another part: other figures")


def _clock_row(report: SynthesisReport, estimate: dict[str, Any]) -> Row:
    target = 1e3 / estimate["clock_megahertz"]
    note = "" if abs(target - report.target_period) < 0.01 else f"synthesised for {report.target_period:g} ns"
    return Row("clock period, ns", f"{target:.2f}", f"{report.estimated_period:.2f}", note)


def _cycles_row(report: SynthesisReport, cycles: dict[str, Any]) -> Row:
    """The row of cycles. Loops over tokens have no fixed trip count, so synthesis gives only bounds."""
    best, worst = report.cycles
    bounds = f"{'?' if best is None else best} to {'?' if worst is None else worst}"
    inside = (best is None or best <= cycles["total"]) and (worst is None or cycles["total"] <= worst)
    note = "within the bounds that loops have" if inside else "outside of the bounds that loops have"
    return Row("cycles", str(cycles["total"]), bounds, note)


def _resource_row(name: str, report: SynthesisReport, estimated: int) -> Row:
    reported = report.resources[name]
    return Row(TAGS[name][0], str(estimated), str(reported), _difference(estimated, reported, name in ROUGH))


def _process_rows(process: str, dsps: int, report: SynthesisReport) -> Iterator[Row]:
    """The row of a process's DSPs, if the report has its module, which is named after it with a suffix for template
    arguments. Processes of a whole model are instantiated with the struct of their kernel."""
    kernel, _, module = process.rpartition(".")
    if kernel:
        module = f"{module}_{STRUCTS[kernel]}"
    counts = [count for name, count in report.dsp_by_module.items() if name == module or name.startswith(f"{module}_")]
    if counts:
        yield Row(f"DSP of {process}", str(dsps), str(max(counts)), _difference(dsps, max(counts), rough=False))


def _difference(estimated: int, reported: int, rough: bool) -> str:
    if estimated == reported:
        return "as estimated"
    note = f"{reported - estimated:+d}"
    if estimated:
        note += f" ({(reported - estimated) / estimated:+.0%})"
    return f"{note}; a rough model" if rough else note


def _loops(root: ElementTree.Element, what: str) -> Iterator[tuple[str, int]]:
    """Loops with their number of the tag ``what``. A loop's name is the tag of its element, or the text of a child."""
    for loop in root.iter():
        number = loop.findtext(what)
        if number and _COUNT.fullmatch(number):
            yield loop.findtext("Name") or loop.tag, int(number)


def _dsp_by_module(root: ElementTree.Element) -> Iterator[tuple[str, int]]:
    for module in root.iterfind("ModuleInformation/Module"):
        name = module.findtext("Name") or ""
        resources = module.find("AreaEstimates/Resources")
        if resources is not None and _LOOP_MODULE not in name:
            yield name, _resource(resources, "dsp")


def _resources(root: ElementTree.Element, path: str) -> dict[str, int]:
    element = root.find(path)
    if element is None:
        raise ReportError(f"the report has no {path}; expected csynth.xml of Vitis HLS")
    return {name: _resource(element, name) for name in TAGS}


def _resource(resources: ElementTree.Element, name: str) -> int:
    """The count of a resource; 0 for UltraRAM if the report does not list it, as for parts without any."""
    texts = [text for text in (resources.findtext(tag) for tag in TAGS[name]) if text is not None]
    if not texts and name != "uram":
        raise ReportError(f"the report counts no {TAGS[name][0]}; expected csynth.xml of Vitis HLS")
    if texts and not _COUNT.fullmatch(texts[0].strip()):
        raise ReportError(f"the report counts {texts[0][:40]!r} {TAGS[name][0]}; expected a number")
    return int(texts[0]) if texts else 0


def _cycles(root: ElementTree.Element, path: str) -> int | None:
    """A number of cycles; None where it is undefined or missing."""
    text = (root.findtext(path) or "").strip()
    return int(text) if _COUNT.fullmatch(text) else None


def _number(root: ElementTree.Element, path: str, otherwise: float | None = None) -> float:
    if otherwise is not None and root.find(path) is None:
        return otherwise
    text = _text(root, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf or (number == 0 and otherwise is None):
        raise ReportError(f"the report has {text[:40]!r} for {path}; expected a number of nanoseconds")
    return number


def _text(root: ElementTree.Element, path: str) -> str:
    text = root.findtext(path)
    if text is None:
        raise ReportError(f"the report has no {path}; expected csynth.xml of Vitis HLS")
    return text.strip()


def _find(folder: pathlib.Path) -> pathlib.Path:
    reports = sorted(folder.glob("**/syn/report/csynth.xml"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise ReportError(f"no syn/report/csynth.xml below {folder}; run the synthesis first, or name the report")
    return reports[-1]


def _read(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ReportError(f"{path}: has more than {_MOST_BYTES >> 20} MiB; expected a report or an estimate")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: {error}") from error


def _save(path: pathlib.Path, calibration: dict[str, Any]) -> None:
    """Write a calibration atomically, and replace no other file than a calibration."""
    try:
        if path.exists() and not _read(path).startswith(f'{{"format": "{_FORMAT}"'):
            raise ReportError(f"{path}: exists and is no calibration; name another file")
        written = path.with_name(f"{path.name}.{os.getpid()}")
        written.write_text(json.dumps(calibration), encoding="utf-8")
        written.replace(path)
    except OSError as error:
        raise ReportError(f"{path}: {error}") from error


def _run(report_path: pathlib.Path, estimate_path: pathlib.Path, save: pathlib.Path | None) -> int:
    report = read_report(_read(report_path))
    try:
        estimate = json.loads(_read(estimate_path))
        rows, most_stages = compare(report, estimate), estimate["most_stages"]
        broken, unusable = broken_assumptions(report, most_stages), wrong_loops(report, most_stages)
        record = calibration(report, estimate)
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        raise ReportError(f"the estimate lacks {error}; expected estimate.json of a project that moec made") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"the estimate is no JSON: {error}") from error
    print(table(rows))
    for reason in broken:
        print(f"estimates do not hold: {reason}")
    if save is not None and unusable:
        print(f"{save} was not written: no factor corrects loops that are built otherwise")
    elif save is not None:
        _save(save, record)
    return 1 if broken else 0


def main(arguments: list[str]) -> int:
    folder = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", nargs="?", type=pathlib.Path, help="csynth.xml; default: the newest below the script")
    parser.add_argument("estimate", nargs="?", type=pathlib.Path, default=folder / "estimate.json")
    parser.add_argument("--save", type=pathlib.Path, help="A file for moec compile --calibrated.")
    options = parser.parse_args(arguments)
    try:
        return _run(options.report or _find(folder), options.estimate, options.save)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
