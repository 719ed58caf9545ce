"""The linter of HLS C++: it finds, before anybody waits for synthesis, what a vendor's tool would at best warn of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from moec.targets.hls.cpp.source import Source
from moec.targets.hls.hardware.configuration import read_configuration
from moec.targets.hls.lint import dataflow as lint_dataflow
from moec.targets.hls.lint import loops as lint_loops
from moec.targets.hls.lint import memory as lint_memory
from moec.targets.hls.lint import pragmas as lint_pragmas
from moec.targets.hls.lint.linted import Finding, Linted

Rule = Callable[[Linted], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    lint_pragmas.known_pragmas,
    lint_pragmas.placed_pragmas,
    lint_pragmas.pragmas_of_functions,
    lint_pragmas.initiation_intervals,
    lint_pragmas.pinned_styles,
    lint_pragmas.declared_variables,
    lint_pragmas.possible_partitions,
    lint_pragmas.justified_dependences,
    lint_pragmas.complete_interfaces,
    lint_loops.pipelined_innermost_loops,
    lint_loops.trip_counts,
    lint_loops.cheap_divisions,
    lint_memory.unconditional_accesses,
    lint_memory.bound_storage,
    lint_dataflow.simple_regions,
    lint_dataflow.named_channels,
    lint_dataflow.single_producer_and_consumer,
    lint_dataflow.one_process_per_array,
    lint_dataflow.one_master_per_direction,
    lint_dataflow.regions_in_turn,
)


def lint(files: Mapping[str, bytes]) -> list[Finding]:
    """Findings in a project, given as contents by path: in all its C++ except the testbench and models for simulation.

    Raises MoecError where the project has no configuration, or brackets do not match.
    """
    skipped = read_configuration(files).testbench
    return lint_sources(
        Source(name, files[name].decode())
        for name in sorted(files)
        if name.endswith((".h", ".hpp", ".cpp")) and name not in skipped and not name.endswith("hls_stream.h")
    )


def lint_sources(sources: Iterable[Source]) -> list[Finding]:
    """Findings sorted by file and line. Needs all sources of a design, since rules look from calls to definitions."""
    linted = Linted(tuple(sources))
    findings = {finding for rule in RULES for finding in rule(linted)}
    return sorted(findings, key=lambda finding: (finding.file, finding.line, finding.rule, finding.message))
