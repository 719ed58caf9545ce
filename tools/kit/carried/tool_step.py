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

from .places import FOLDER
from .present import tool

_METRICS = ("Duration", "SM Frequency", "Registers Per Thread", "Achieved Occupancy", "L2 Cache Throughput",
            "DRAM Throughput", "Compute (SM) Throughput", "No Eligible", "Executed Ipc Active", "L1/TEX Hit Rate",
            "L2 Hit Rate", "Local(?) Spill")  # fmt: skip
_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"
_SHOWN = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    parser.add_argument("tool")
    parser.add_argument("rest", nargs="*")
    asked = parser.parse_args()
    if asked.tool == "machine":
        return _run([str(tool("nvidia-smi")), f"--query-gpu={_QUERY}", "--format=csv"])
    module, *tapes = asked.rest
    functions = [tapes.pop()] if asked.tool == "ncu" else []
    step = [sys.executable, "-m", f"carried.{module}", "--folder", str(asked.folder), *tapes]
    if functions:
        output = asked.folder.parent / f"ncu-{functions[0]}"
        command = [
            str(tool("ncu")),
            "--set",
            "full",
            "--force-overwrite",
            "--export",
            str(output),
            "--print-details=all",
        ]
        command += ["--kernel-name", functions[0], "--launch-count", "1", "--page", "details"]
        return _run([*command, *step], _METRICS)
    command = [str(tool("compute-sanitizer")), "--tool", asked.tool, "--error-exitcode", "9", "--print-limit", "10"]
    return _run([*command, *step])


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
