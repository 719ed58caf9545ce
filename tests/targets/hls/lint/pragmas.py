"""Rules about pragmas themselves. A vendor's tool ignores most mistakes in them, at best with a warning."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moec.simulators.hls.cpp import Pragma
from moec.simulators.hls.instrument import STYLES

from .linted import Finding, FunctionPlace, Linted

_SHAPES = {"variable", "type", "factor", "dim", "off"}
KNOWN = {
    "AGGREGATE": {"variable", "compact"},
    "ALLOCATION": {"instances", "limit", "type"},
    "ARRAY_PARTITION": _SHAPES,
    "ARRAY_RESHAPE": _SHAPES,
    "BIND_OP": {"variable", "op", "impl", "latency"},
    "BIND_STORAGE": {"variable", "type", "impl", "latency"},
    "DATAFLOW": {"disable_start_propagation"},
    "DEPENDENCE": {"variable", "type", "direction", "distance", "dependent", "class"},
    "DISAGGREGATE": {"variable"},
    "INLINE": {"off", "recursive"},
    "INTERFACE": {
        *("mode", "m_axi", "s_axilite", "axis", "ap_none", "ap_ctrl_hs", "ap_ctrl_none", "ap_ctrl_chain"),
        *("port", "bundle", "offset", "depth", "register", "latency", "max_widen_bitwidth"),
        *("max_read_burst_length", "max_write_burst_length", "num_read_outstanding", "num_write_outstanding"),
    },
    "LOOP_FLATTEN": {"off"},
    "LOOP_TRIPCOUNT": {"min", "max", "avg"},
    "PIPELINE": {"II", "style", "rewind", "off"},
    "STABLE": {"variable"},
    "STREAM": {"variable", "depth", "type"},
    "UNROLL": {"factor", "skip_exit_check", "off"},
}
"""The options of each pragma that all versions from LEAST_VERSION on know (UG1399, 2021.2 to 2026.1)."""
_VALUES = {
    ("AGGREGATE", "compact"): {"bit", "byte", "none", "auto"},
    ("ARRAY_PARTITION", "type"): {"complete", "cyclic", "block"},
    ("ARRAY_RESHAPE", "type"): {"complete", "cyclic", "block"},
    ("BIND_STORAGE", "impl"): {"bram", "lutram", "uram", "srl"},
    ("BIND_STORAGE", "type"): {
        *("fifo", "ram_1p", "ram_1wnr", "ram_2p", "ram_s2p", "ram_t2p", "rom_1p", "rom_2p", "rom_np"),
    },
    ("DEPENDENCE", "type"): {"inter", "intra"},
    ("DEPENDENCE", "dependent"): {"true", "false"},
    ("DEPENDENCE", "direction"): {"RAW", "WAR", "WAW"},
    ("PIPELINE", "style"): set(STYLES),
}
_OF_LOOPS = ("PIPELINE", "UNROLL", "LOOP_TRIPCOUNT", "LOOP_FLATTEN")
_MASTER_OPTIONS = ("port", "bundle", "offset", "depth", "latency")


def known_pragmas(linted: Linted) -> Iterator[Finding]:
    """Every pragma, option and value is known to the tools from LEAST_VERSION on: they skip unknown ones."""
    for source in linted.sources:
        for pragma in source.pragmas:
            line = source.line(pragma.start)
            if pragma.directive not in KNOWN:
                message = f"pragma {pragma.directive} is not known; expected one of {', '.join(KNOWN)}"
                yield Finding(source.name, line, "known-pragmas", message)
                continue
            options = KNOWN[pragma.directive]
            for option in (*[name for name in pragma.options if name not in options], *pragma.unreadable):
                message = (
                    f"option {option} of {pragma.directive} is not known; expected one of {', '.join(sorted(options))}"
                )
                yield Finding(source.name, line, "known-pragmas", message)
            for option, value in pragma.options.items():
                values = _VALUES.get((pragma.directive, option), {value})
                if value not in values:
                    message = f"pragma {pragma.words}: {option}={value}; expected one of {', '.join(sorted(values))}"
                    yield Finding(source.name, line, "known-pragmas", message)


def placed_pragmas(linted: Linted) -> Iterator[Finding]:
    """Pragmas of a loop are at the start of its body, those of a function in the function's own block: elsewhere they
    mean something else, or nothing."""
    for place in linted.places:
        bodies = {loop.body.start: loop.body for loop, _ in place.loops() if loop.body.kind == "block"}
        for pragma, block in place.pragmas():
            if pragma.directive in _OF_LOOPS:
                is_first = block.start in bodies and not any(child.start < pragma.start for child in block.children)
                if not is_first:
                    message = f"{pragma.directive} does not stand where a loop's body starts; move it there"
                    yield place.finding(pragma.start, "placed-pragmas", message)
            elif pragma.directive in ("INTERFACE", "DATAFLOW", "INLINE") and block is not place.function.body:
                message = f"{pragma.directive} stands in an inner block; move it to where the function starts"
                yield place.finding(pragma.start, "placed-pragmas", message)


def pragmas_of_functions(linted: Linted) -> Iterator[Finding]:
    """Every pragma is in a function: other rules, and the tools, look nowhere else."""
    for source in linted.sources:
        bodies = [place.function.body for place in linted.places if place.source is source]
        for pragma in source.pragmas:
            if not any(body.start < pragma.start < body.end for body in bodies):
                message = f"pragma {pragma.words} stands in no function that is understood; move it into one"
                yield Finding(source.name, source.line(pragma.start), "pragmas-of-functions", message)


def initiation_intervals(linted: Linted) -> Iterator[Finding]:
    """The initiation interval of a pipeline is given as a whole number: without one the tools take the best they
    find."""
    for place in linted.places:
        for pragma, _ in place.pragmas():
            if pragma.directive != "PIPELINE" or "off" in pragma.options:
                continue
            if not re.fullmatch(r"[1-9]\d*", pragma.options.get("II", "")):
                message = f"pragma {pragma.words}: expected II= and a whole number above 0"
                yield place.finding(pragma.start, "initiation-intervals", message)


def pinned_styles(linted: Linted) -> Iterator[Finding]:
    """The style of a pipeline is given: the default has changed between versions, and channels must be as deep as the
    style demands."""
    for place in linted.places:
        for pragma, _ in place.pragmas():
            if pragma.directive != "PIPELINE" or "off" in pragma.options:
                continue
            if "style" not in pragma.options:
                message = f"pragma {pragma.words}: expected style= and one of {', '.join(STYLES)}"
                yield place.finding(pragma.start, "pinned-styles", message)


def declared_variables(linted: Linted) -> Iterator[Finding]:
    """A variable that a pragma names is declared in the pragma's function, or is a parameter of it."""
    for place in linted.places:
        for pragma, _ in place.pragmas():
            named = pragma.options.get("variable") or pragma.options.get("port")
            if not named or named == "return":
                continue
            name = re.split(r"[.\[]", named)[0]
            if not _is_parameter(place, name) and not _dimensions(place, name):
                message = f"pragma {pragma.words}: {name} is not declared in {place.function.name}; correct the name"
                yield place.finding(pragma.start, "declared-variables", message)


def possible_partitions(linted: Linted) -> Iterator[Finding]:
    """A partition has a factor unless it is complete, and a dimension that the array has."""
    for place in linted.places:
        for pragma, _ in place.pragmas():
            if pragma.directive not in ("ARRAY_PARTITION", "ARRAY_RESHAPE"):
                continue
            if problem := _partition_problem(place, pragma):
                yield place.finding(pragma.start, "possible-partitions", f"pragma {pragma.words}: {problem}")


def justified_dependences(linted: Linted) -> Iterator[Finding]:
    """A comment right above a DEPENDENCE pragma gives its reason: nothing else checks such a claim in hardware."""
    for source in linted.sources:
        lines = source.text.splitlines()
        for pragma in source.pragmas:
            if pragma.directive != "DEPENDENCE":
                continue
            above = source.line(pragma.start) - 2
            while above >= 0 and lines[above].strip().startswith("#pragma HLS DEPENDENCE"):
                above -= 1
            if above < 0 or not lines[above].strip().startswith("//"):
                message = f"pragma {pragma.words} without a comment above it; say why it holds"
                yield Finding(source.name, source.line(pragma.start), "justified-dependences", message)


def complete_interfaces(linted: Linted) -> Iterator[Finding]:
    """Every pointer of a top function has an AXI master whose options are all given, and a register for its address."""
    for place in linted.tops:
        modes: dict[str, set[str]] = {}
        for pragma in place.function.body.pragmas_named("INTERFACE"):
            mode = pragma.options.get("mode") or next(
                (name for name in pragma.options if name in ("m_axi", "s_axilite")), ""
            )
            modes.setdefault(pragma.options.get("port", ""), set()).add(mode)
            missing = [option for option in _MASTER_OPTIONS if option not in pragma.options] if mode == "m_axi" else []
            if missing:
                message = f"pragma {pragma.words} lacks {', '.join(missing)}; the defaults differ between flows"
                yield place.finding(pragma.start, "complete-interfaces", message)
        for parameter in place.function.parameters:
            missing = {"m_axi", "s_axilite"} - modes.get(parameter.name, set()) if parameter.is_pointer else set()
            if missing:
                message = f"port {parameter.name} has no pragma INTERFACE {' and none '.join(sorted(missing))}; add it"
                yield place.finding(place.function.start, "complete-interfaces", message)


def _is_parameter(place: FunctionPlace, name: str) -> bool:
    return any(parameter.name == name for parameter in place.function.parameters)


def _dimensions(place: FunctionPlace, name: str) -> list[int]:
    """The number of array dimensions of each declaration of a variable in a function."""
    declaration = rf"[\w>\]*&,]\s*(?<![\w.]){name}\s*((?:\[[^\]]*\]\s*)*)(?=[;,=({{])"
    return [match[1].count("[") for match in re.finditer(declaration, place.text)]


def _partition_problem(place: FunctionPlace, pragma: Pragma) -> str:
    options = pragma.options
    shape = options.get("type", "complete")
    if shape != "complete" and "factor" not in options:
        return f"a {shape} partition needs factor="
    if "variable" not in options:
        return "expected variable="
    dimensions = _dimensions(place, options["variable"])
    dimension = options.get("dim", "1")
    if dimensions and dimension.isdigit() and int(dimension) > max(dimensions) > 0:
        return f"the array has {max(dimensions)} dimensions"
    return ""
