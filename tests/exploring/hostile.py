"""A document in which everything has one name, and names that could break a page."""

from __future__ import annotations

from typing import Any

from .test_page import of

MARKUP = "a\"b'c`d</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
DIRECTION = "\u202eright to left\u2066 and \u200f"
LINES = "first\nsecond\r\n\tthird\u2028fourth"
ADDRESS = "javascript:window.ran=1//%2F..%23#?&"
CONTROLS = "\x00\x07\x1b[31m\x7f\x85\ufeff\ud800"
NAMES = {"long": "n" * 10_000, "odd": ADDRESS + MARKUP + DIRECTION + LINES + CONTROLS}


def document(name: str) -> dict[str, Any]:
    """Describe an artifact in which everything has one name."""
    kernel = {"name": name, "op": name, "computes": name, "calls": 1, "nodes": [name]}
    candidates = [{"kernel": name, "eligible": True, "reason": name, "chosen": True}]
    levels = [{"level": level, "text": f"{name}\n", "lines": [1], "absent": None} for level in ("onnx", "tir")]
    loop = {"variable": name, "kind": name, "line": 1, "extent": name, "bytes_read": name, "bytes_written": name}
    buffer = {"name": name, "scope": name, "shape": [name], "dtype": name, "bytes": name}
    text = {"name": name, "levels": levels, "parents": {}, "loops": [{**loop, "operations": name, "children": []}]}
    part = {"title": name, "kind": "moe", "layer": 0, "block": 0, "reads": [], "nodes": [name], "kernels": [name]}
    sizes = {"num_experts": 1, "top_k": 1, "hidden_size": 8, "intermediate_size": 8}
    block = {"name": name, "op": name, "router": name, "activation": name, "formulation": name, "experts": None}
    expert = {"expert": 0, "number": 0, "with": [], "why": name, "hidden_units": 8, "formats": {name: name}}
    layer = {"name": name, "top_k": 1, "tokens": None, "losses": []}
    stage = {"name": name, "at": 0, "rules": name, "remarks": [name], "nodes": 1, "retyped": 0, "edits": [[0, 0, [0]]]}
    return of(
        name,
        kernels=[{**kernel, "candidates": candidates}],
        texts={name: {**text, "buffers": [buffer], "resources": [{name: name}]}},
        moe_blocks=[{**block, **sizes, "formats": {name: [name]}}],
        remarks=[{"pass_name": name, "subject": name, "message": name, "severity": "warning"}],
        layers={
            "parts": [
                {**part, "weight_bytes": 8, "shared_bytes": 0, "formats": {name: 8}, "microseconds": []},
                {**part, "block": None, "weight_bytes": 8, "shared_bytes": 0, "formats": {name: 8}, "microseconds": []},
            ],
            "cases": [],
            "no_times": name,
            "stored_bytes": 8,
        },
        experts={"layers": [{**layer, "experts": [{**expert, "bits": 4, "bytes": 8}]}], "no_profile": name},
        passes={
            "lines": [name],
            "nodes": [[name, name, [name], [name]]],
            "types": {name: name},
            "stages": [stage, {**stage, "edits": []}],
            "unchanged": [name],
        },
        roofline=_roofline(name),
        timeline=_timeline(name),
        projects=[_project(name)],
        simulation=[_simulated(name)],
    )


def _roofline(name: str) -> dict[str, Any]:
    figures = ("operations", "bytes", "operations_per_byte", "operations_per_second", "bytes_per_second")
    kernel = {"name": name, "kind": "product", "calls": 1, "microseconds": 1.0, "share_of_time": 1.0, "limit": name}
    kernel |= dict.fromkeys(figures, 8) | {"arithmetic": name, "share_of_roof": 0.5}
    advice = {"text": name, "gain": 0.1, "exact": False, "options": name, "kernels": [name]}
    run = {"title": name, "machine": 0, "measured": True, "microseconds": 1.0, "kernel_microseconds": 1.0}
    rows = [kernel, {**kernel, "operations_per_byte": None}]
    runs = [{**run, "kernels": rows, "not_predicted": [name], "advice": [advice]}] * 2
    roof = {"arithmetic": [name], "operations_per_second": 16}
    machine = {"title": name, "source": name, "bytes_per_second": 1, "roofs": [roof]}
    return {"machines": [machine, machine], "runs": runs, "faults": [name]}


def _timeline(name: str) -> dict[str, Any]:
    call = {"kernel": name, "start": 0, "duration": 9, "node": name, "bytes": 8, "operations": 8}
    row = {"name": name, "op": name, "calls": 1, "microseconds": 9, "median": 9, "share": 1}
    counters = [{"name": name, "points": points} for points in ([[0, 8]], [[0, 8], [4, 0]])]
    case = {"title": name, "microseconds": 9, "unrecorded": 1, "kernel_microseconds": 9, "calls": [call]}
    cases = [{**case, "kernels": [row], "counters": counters}] * 2
    return {"machine": name, "threads": 1, "is_own": False, "foreign": [name], "cases": cases}


def _project(name: str) -> dict[str, Any]:
    channel = {"name": name, "producer": name, "consumer": f"{name} 2", "bits": 8, "depth": 2, "copies": 1}
    cycles = {"layers": [{"kind": name, "cycles": 9, "beats": 1}], "total": 9, "bound_by": name}
    estimate = {"part": name, "clock_megahertz": 1, "milliseconds": 1, "gigabytes_per_second": 1, "cycles": cycles}
    estimate |= {"resources": {name: 1}, "available": {name: 2}, "dsp_by_process": {name: 1}}
    return {"name": name, "folder": name, "report": {"node": name, "channels": [channel], "estimate": estimate}}


def _simulated(name: str) -> dict[str, Any]:
    process = {"name": name, "end": 9, "busy": 9, "read_stall": 0, "write_stall": 0, "memory_stall": 0}
    channel = {"name": name, "peak": 1, "words": 9}
    result = {"name": name, "cycles": 9, "estimated": 9, "passed": True, "later_cycles": [9]}
    return {**result, "processes": [process], "channels": [channel]}
