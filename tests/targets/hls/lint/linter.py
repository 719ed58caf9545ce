"""The linter of HLS C++: it finds, before anybody waits for synthesis, what a vendor's tool would at best warn of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from moec.simulators.hls.cpp import Source
from moec.targets.hls.hardware.configuration import read_configuration

from . import dataflow, loops, memory, pragmas
from .linted import Finding, Linted

Rule = Callable[[Linted], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    pragmas.known_pragmas,
    pragmas.placed_pragmas,
    pragmas.pragmas_of_functions,
    pragmas.initiation_intervals,
    pragmas.pinned_styles,
    pragmas.declared_variables,
    pragmas.possible_partitions,
    pragmas.justified_dependences,
    pragmas.complete_interfaces,
    loops.pipelined_innermost_loops,
    loops.trip_counts,
    loops.cheap_divisions,
    memory.unconditional_accesses,
    memory.bound_storage,
    dataflow.simple_regions,
    dataflow.named_channels,
    dataflow.single_producer_and_consumer,
    dataflow.one_process_per_array,
    dataflow.one_master_per_direction,
    dataflow.regions_in_turn,
)


def lint(files: Mapping[str, bytes]) -> list[Finding]:
    """Findings in the C++ of a project, given as contents by path, except its testbench.

    Raises MoecError where the project has no configuration, or brackets do not match.
    """
    skipped = read_configuration(files).testbench
    return lint_sources(
        Source(name, files[name].decode()) for name in sorted(files) if is_source(name) and name not in skipped
    )


def is_source(name: str) -> bool:
    """Whether a project's file is C++ that becomes hardware, or its testbench: models for simulation are neither."""
    return name.endswith((".h", ".hpp", ".cpp")) and not name.endswith("hls_stream.h")


def lint_sources(sources: Iterable[Source]) -> list[Finding]:
    """Findings sorted by file and line. Needs all sources of a design, since rules look from calls to definitions."""
    linted = Linted(tuple(sources))
    findings = {finding for rule in RULES for finding in rule(linted)}
    return sorted(findings, key=lambda finding: (finding.file, finding.line, finding.rule, finding.message))
