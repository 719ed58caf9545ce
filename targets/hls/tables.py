"""Tables of HLS designs for ``moec inspect``, as rich renderables made from plain data.

All figures except those of a timed simulation are estimates, and the tables say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moec.common.tables import table
from moec.targets.hls.design.channels import PROCESSES
from moec.targets.hls.hardware.costs import RESOURCE_NAMES
from moec.targets.hls.model.channels import KERNELS

_NOT_SYNTHESISED = "estimates: nothing here has been synthesised"
_PHASES = {
    "route": "routing: until each expert's tokens are known",
    "normalize": "until all tokens are normalised",
    "latents": "until all latents are normalised",
    "first_weights": "the first tile of weights arrives",
    "products": "the arrays compute",
    "stalls": "the arrays wait for weights, or for each other",
    "results": "results are written",
}


def project_tables(project: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Tables of a project from an artifact: its design, and the error of its integers."""
    report = project["report"]
    yield Text(f"Project {project['name']} in {project['folder']}: {report['node']}")
    if report.get("by_block"):
        yield Text(f"A project per block, for no design computes the whole model: {report['by_block']}")
    for reason in report["outside"]:
        yield Text(f"Not in a project: {reason}")
    if report["rest"]["operators"] or report["rest"]["unknown"]:
        yield _rest_table(report["rest"])
    if "exploration" in report:
        yield exploration_table(report["exploration"])
    if "kernels" in report:
        yield Text(_kernels(report["kernels"]))
    yield from estimate_tables(report["estimate"])
    if "last_token" in report:
        yield Text(_last_token(report["last_token"]))
    yield dataflow_picture(report["channels"])
    yield Text(_agreement(report["agreement"]))
    yield _quality_table(report)


def _last_token(call: Mapping[str, Any]) -> str:
    time = f"{call['cycles']:,} cycles, {call['milliseconds']:.3f} ms, in which weights are read at "
    time += f"{call['gigabytes_per_second']:.2f} GB/s, {call['memory_share']:.1%} of what the memory has"
    return f"A call with one token behind {call['past']:,} others, which a cache holds: {time} ({_NOT_SYNTHESISED})"


def _agreement(blocks: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the comparison of the float forms with the graph."""
    worst = max(blocks, key=lambda block: block["largest"] / block["bound"])
    said = (
        f"Floats that became integers, against the graph on up to {max(block['tokens'] for block in blocks)} tokens: "
    )
    said += f"differ by up to {worst['largest']:.1e} of what {worst['node']} adds, {worst['bound']:.0e} allowed"
    unseen = dict.fromkeys(what for block in blocks for what in block["unseen"])
    return said + (f"; not seen: {'; '.join(unseen)}" if unseen else "")


def _kernels(kernels: Mapping[str, Any]) -> str:
    """The design of a whole model in words."""
    lanes, attention = kernels["lanes"], kernels["attention_lanes"]
    parts = [f"Layers of experts: {lanes} x {lanes} products per array and cycle, tiles of {kernels['hidden_tile']}"]
    parts.append(f"{kernels['router_lanes']} router lanes")
    up, down = kernels["masters"]
    parts.append(f"{up} + {down} masters of weights")
    return ", ".join(parts) + (f"; attention: {attention} x {attention}" if attention else "")


def _rest_table(rest: Mapping[str, Any]) -> Table:
    rows = []
    for operator in rest["operators"]:
        more = (
            f", {operator['count'] - len(operator['nodes'])} more" if operator["count"] > len(operator["nodes"]) else ""
        )
        rows.append(
            (
                operator["operator"],
                str(operator["count"]),
                f"{operator['share']:.2%}",
                ", ".join(operator["nodes"]) + more,
            )
        )
    rows += [("?", "1", "unknown size", node) for node in rest["unknown"]]
    title = f"In no project: {rest['share']:.1%} of the model's operations, which the caller computes elsewhere"
    return table(title, ("operator", "nodes", "share", ""), rows)


def _quality_table(report: Mapping[str, Any]) -> Table:
    quality = report["quality"]
    rows = [(name, _decibels(ratio), "") for name, ratio in quality["decibels"].items()]
    for name, entry in report["model_outputs"].items():
        same = (
            "" if entry["same_largest"] is None else f"{entry['same_largest']:.2%} with the largest at the same place"
        )
        rows.append((f"{name} (of the model)", _decibels(entry["decibels"]), same))
    rows += [
        (entry["node"], _decibels(entry["decibels"]), "of the floats in front of it")
        for entry in report.get("layers", ())
    ]
    title = f"Signal over quantisation noise on {quality['tokens']} calibration tokens"
    if "agreement" in quality:
        title += f"; {quality['agreement']:.2%} of the pairs of token and expert as in floats"
    return table(title, ("tensor", "dB", ""), rows)


def _decibels(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}"


def simulation_tables(results: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Tables of the results of ``simulate``."""
    for result in results:
        yield Text(
            f"{result['name']} ({result['node']}): {'PASS' if result['passed'] else 'FAIL: ' + result['message']}"
        )
        if result["passed"]:
            estimated = f"{result['estimated']:,} estimated for a full call"
            first, *more = result["pipeline_depths"]
            also = f", and nothing locks up with {more[0]}" if more else ""
            yield Text(f"{result['tokens']} tokens; {estimated}")
            yield Text(f"{_masters_and_ports(result['ports'])}, {result['memory_share']:.2f} beats per cycle and port")
            yield Text(f"predicted with pipelines of {first} stages{also}")
            if "layers" in result:
                yield _layer_table(result)
            if "calls" in result:
                yield call_table(result["calls"])
            yield dataflow_picture(result["channels_of"], result)


def _layer_table(result: Mapping[str, Any]) -> Table:
    """Estimated and simulated cycles of a whole model's layers. The region that reads a layer's record counts for the
    layer."""
    taken, header = [], 0
    for region in result["regions"]:
        if region["name"] in KERNELS:
            taken.append(header + region["cycles"])
        header = region["cycles"]
    rows = [
        (str(place), layer["kind"], f"{layer['cycles']:,}", f"{cycles:,}")
        for place, (layer, cycles) in enumerate(zip(result["layers"], taken, strict=True))
    ]
    return table("Cycles by layer", ("", "layer", "estimated", "simulated"), rows)


def call_table(calls: Sequence[Mapping[str, Any]]) -> Table:
    """Estimated and simulated cycles of a decoder's calls: a prompt in one or two, then single tokens."""
    rows = [
        (f"{call['tokens']:,}", f"{call['past']:,}", f"{call['cycles']:,}", f"{call['simulated']:,}") for call in calls
    ]
    return table("Cycles by call", ("tokens", "behind", "estimated", "simulated"), rows)


def exploration_table(exploration: Mapping[str, Any]) -> Table:
    """The Pareto front of an exploration, given as ``Exploration.as_dict``."""
    limits = ", ".join(f"{exploration['limits'][name]} {title}" for name, title in RESOURCE_NAMES.items())
    title = (
        f"Designs for {exploration['board']} at {exploration['clock_megahertz']:g} MHz that no other beats "
        f"(* chosen; {_NOT_SYNTHESISED})\n"
        f"{exploration['fitting']} of {exploration['considered']} fit: at most {limits}"
    )
    headings = (
        *("", "lanes", "hidden tile", "router", "weight FIFO", "arrays", "cycles", "starved", "bound by", "ms"),
        *("DSP", "BRAM18", "URAM", "LUT", "FF", "GB/s"),
    )
    return table(title, headings, [_design_cells(design) for design in exploration["front"]])


def _design_cells(design: Mapping[str, Any]) -> tuple[str, ...]:
    array = str(design["lanes"])
    return (
        "*" if design["chosen"] else "",
        f"{array} x {array}",
        str(design["hidden_tile"]),
        f"{design['router_lanes']} x {design['router_experts']}",
        str(design["weight_fifo"]),
        design["large_arrays"],
        f"{design['cycles']:,}",
        f"{design['starved_cycles']:,}",
        design["bound_by"],
        f"{design['milliseconds']:.3f}",
        *(f"{design['resources'][name]:,}" for name in RESOURCE_NAMES),
        f"{design['gigabytes_per_second']:.1f}",
    )


def estimate_tables(estimate: Mapping[str, Any]) -> Iterator[RenderableType]:
    """One design in detail, given as ``Estimate.as_dict``: its phases, its resources, and the processes that take
    them."""
    cycles = estimate["cycles"]
    total = cycles["total"]
    phases = [
        (text, f"{cycles[name]:,}", f"{cycles[name] / total:.1%}") for name, text in _PHASES.items() if cycles.get(name)
    ]
    for place, layer in enumerate(cycles.get("layers", ())):
        phases.append((f"layer {place}: {layer['kind']}", f"{layer['cycles']:,}", f"{layer['cycles'] / total:.1%}"))
    phases.append((f"all; bound by {cycles['bound_by']}", f"{total:,}", f"{estimate['milliseconds']:.3f} ms"))
    yield Text(f"Memory: {_masters_and_ports(estimate['ports']['of'])} (link.cfg)")
    clock = f"{estimate['clock_megahertz']:g} MHz, a beat of weights every {estimate['cycles_per_beat']:.2f} cycles"
    clock += f", pipelines of {estimate['stages']} stages"
    yield table(f"Cycles per call at {clock} ({_NOT_SYNTHESISED})", ("phase", "cycles", ""), phases)
    resources, available = estimate["resources"], estimate["available"]
    shares = [
        (title, f"{resources[name]:,}", f"{available[name]:,}", _share(resources[name], available[name]))
        for name, title in RESOURCE_NAMES.items()
    ]
    title = f"Resources on {estimate['board']} ({estimate['part']}; LUTs and flip-flops within a factor of two)"
    yield table(title, ("", "needed", "there are", "share"), shares)
    yield table("Who takes them", ("process", "DSP", "BRAM18", "URAM", "LUT of memories"), _by_process(estimate))


def _masters_and_ports(ports: Mapping[str, str]) -> str:
    return ", ".join(f"{bundle} at {port}" for bundle, port in ports.items())


def _share(needed: int, available: int) -> str:
    return f"{needed / available:.1%}" if available else "-"


def _by_process(estimate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    named = {*estimate["dsp_by_process"], *(memory["process"] for memory in estimate["memories"])}
    for process in sorted(named, key=_place_of):
        memories = [memory for memory in estimate["memories"] if memory["process"] == process]
        blocks = [
            sum(memory["blocks"] for memory in memories if memory["storage"] == kind) for kind in ("bram", "uram")
        ]
        luts = sum(memory["luts"] for memory in memories)
        rows.append((process, *(str(n) for n in (estimate["dsp_by_process"].get(process, 0), *blocks, luts))))
    return rows


def dataflow_picture(channels: Sequence[Mapping[str, Any]], simulation: Mapping[str, Any] | None = None) -> Text:
    """A picture of processes and the channels they write, with the figures of a timed simulation if there is one.

    ``channels``: name, producer, consumer, bits and depth of each; ``simulation``: cycles, processes and channels as
    ``TimedResult`` has them, as plain data.
    """
    used = {channel["name"]: channel for channel in simulation["channels"]} if simulation else {}
    times = {process["name"]: process for process in simulation["processes"]} if simulation else {}
    width = max(len(channel["name"]) for channel in channels)
    lines = [
        f"Dataflow, timed simulation: {simulation['cycles']:,} cycles" if simulation else "Dataflow, not simulated"
    ]
    ends = {channel[end]: None for channel in channels for end in ("producer", "consumer")}
    for process in sorted(ends, key=_place_of):
        lines.append(process + _times(times.get(process), simulation))
        written = [channel for channel in channels if channel["producer"] == process]
        for channel in written:
            corner = "└" if channel is written[-1] else "├"
            words = f"{channel['bits']:>5} bits x {channel['depth']:<4}"
            words += f" {channel['copies']} times" if channel["copies"] > 1 else ""
            fill = _fill(used.get(channel["name"]) or used.get(f"{channel['name']}[0]"))
            lines.append(f"  {corner}─ {channel['name']:<{width}} {words} ─► {channel['consumer']}{fill}")
    return Text("\n".join(lines))


def _place_of(process: str) -> tuple[int, int]:
    """The key that sorts processes by kernel, which names of a whole model's processes begin with, and by the order of
    the data."""
    kernel, _, name = process.rpartition(".")
    return KERNELS.index(kernel) if kernel else 0, PROCESSES.index(name)


def _times(process: Mapping[str, Any] | None, simulation: Mapping[str, Any] | None) -> str:
    if not process or not simulation:
        return ""
    waits = {"to read": "read_stall", "to write": "write_stall", "for memory": "memory_stall"}
    waited = [f"{process[key]:,} {what}" for what, key in waits.items() if process[key]]
    waiting = f", waits {', '.join(waited)}" if waited else ""
    return f": busy {process['busy'] / max(simulation['cycles'], 1):.0%}{waiting}"


def _fill(channel: Mapping[str, Any] | None) -> str:
    if not channel:
        return ""
    full = ", full" if channel["peak"] >= channel["depth"] else ""
    return f" (at most {channel['peak']} of {channel['depth']}{full})"
