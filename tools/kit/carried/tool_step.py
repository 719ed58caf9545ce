"""The step of one of NVIDIA's tools around another step of the kit.

python -m carried.tool_step ncu MODULE TAPE FUNCTION
python -m carried.tool_step memcheck MODULE TAPE ...      # or synccheck, racecheck, initcheck
python -m carried.tool_step machine
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

from .places import FOLDER, end_with_parent
from .present import tool

_METRICS = ("Duration", "SM Frequency", "Registers Per Thread", "Achieved Occupancy", "L2 Cache Throughput",
            "DRAM Throughput", "Compute (SM) Throughput", "No Eligible", "Executed Ipc Active", "L1/TEX Hit Rate",
            "L2 Hit Rate", "Local(?) Spill")  # fmt: skip
_SANITIZED = ("SUMMARY", "Error:", "Internal")
_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"
_SHOWN = 40


def main() -> int:
    end_with_parent(with_children=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    parser.add_argument("tool")
    parser.add_argument("rest", nargs="*")
    asked = parser.parse_args()
    if asked.tool == "machine":
        return _run([str(tool("nvidia-smi")), f"--query-gpu={_QUERY}", "--format=csv"])
    module, *tapes = asked.rest
    function = tapes.pop() if asked.tool == "ncu" else ""
    step = [sys.executable, "-m", f"carried.{module}", "--folder", str(asked.folder), *tapes]
    if function:
        return _profiled(asked.folder.parent / f"{tapes[0]}-{function}.ncu-rep", function, step)
    command = [str(tool("compute-sanitizer")), "--tool", asked.tool, "--error-exitcode", "9", "--print-limit", "10"]
    return _run([*command, *step], _SANITIZED)


def _profiled(output: pathlib.Path, function: str, step: list[str]) -> int:
    """Profile the second launch of a function, at the clock that it has by itself, and print what was measured."""
    ncu = str(tool("ncu"))
    command = [ncu, "--set", "full", "--clock-control", "none", "--force-overwrite", "--export", str(output)]
    command += ["--kernel-name", function, "--launch-skip", "1", "--launch-count", "1"]
    if code := _run([*command, *step], ("==ERROR==", "==WARNING==")):
        return code
    return _run([ncu, "--import", str(output), "--page", "details", "--print-details", "all"], _METRICS)


def _run(command: list[str], kept: tuple[str, ...] = ()) -> int:
    """Run a command, and print the lines that hold one of ``kept``, by default all, as findings."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if not kept or any(name in line for name in kept)]
    for line in lines[-_SHOWN:]:
        print(f"* {' '.join(line.split())}")
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-_SHOWN:]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
