"""First light: whatever moec has for an NVIDIA GPU, tried on one in one command, with a report.

    python tools/first_light.py                    # on a machine with a GPU
    python tools/first_light.py --emulate          # on any, to try the steps themselves: kernels run in the emulator
    python tools/first_light.py --only racecheck   # the steps whose names begin so, and what they need
    python tools/first_light.py --pack DIR         # a folder for a machine without network and compiler: DIR/run.sh

Steps, each a process of its own under a time limit, so that a kernel that hangs costs one step: what the machine is;
a layer in each format, compiled and verified; each different kernel as a program of its own, under compute-sanitizer's
memcheck and racecheck, and with clocks in those that use wgmma; tests/gpu; benchmarks/gpu_moe.py. The report, one JSON
file, is written after each step: started again, steps that were passed are not repeated. Ends with 0 where none
failed, with 1 where one did, with 2 where the report is not one.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from kit.carried.steps import (
    ABSENT,
    FAILED,
    LONG,
    PASSED,
    SHOWN_OUTPUT,
    TIMED_OUT,
    FirstLightReport,
    FirstLightStep,
    take,
)
from kit.models import FORMATS, make_layer

ROOT = pathlib.Path(__file__).resolve().parent.parent
_MARK = "moec_first_light"


def steps(work: pathlib.Path, emulate: bool) -> Iterator[FirstLightStep]:
    """Iterate over all steps. Those of kernels become known when their artifacts exist."""
    moec = [sys.executable, "-c", "from moec.cli.main import main; main()"]
    yield tool_step("nvidia-smi", ["nvidia-smi"])
    yield tool_step("nvcc", ["nvcc", "--version"])
    yield tool_step("compute-sanitizer", ["compute-sanitizer", "--version"])
    yield FirstLightStep("doctor", [*moec, "doctor"], folder=ROOT)
    target, emulated = ("cuda:sm_90a", ["--emulate"]) if emulate else (f"cuda:{architecture()}", [])
    for name, (_dtype, passes) in FORMATS.items():
        model, artifact = str(make_layer(name, work)), str(work / f"{name}.moec")
        compiling = [*moec, "compile", model, "-o", artifact, "--target", target, "--passes", passes]
        yield FirstLightStep(f"compile {name}", compiling, LONG, ROOT)
        yield FirstLightStep(f"verify {name}", [*moec, "verify", model, artifact, *emulated], folder=ROOT)
    yield from kernel_steps(work, emulate)
    needs_gpu = "an emulator is no GPU" if emulate else None
    yield FirstLightStep("tests", [sys.executable, "-m", "pytest", "tests/gpu"], LONG, ROOT, absent=needs_gpu)
    benchmark = [sys.executable, "benchmarks/gpu_moe.py", "--json", str(work / "gpu_moe.json")]
    yield FirstLightStep("benchmark", benchmark, LONG, ROOT, absent=needs_gpu)


def kernel_steps(work: pathlib.Path, emulate: bool) -> Iterator[FirstLightStep]:
    """Iterate over the steps of each kernel in the existing artifacts; kernels of equal text come once."""
    from moec.runtime.artifact import open_artifact
    from moec.runtime.description import find_kernel

    itself, emulated = [sys.executable, __file__], ["--emulate"] if emulate else []
    seen: set[str] = set()
    for name in FORMATS:
        if not (work / f"{name}.moec").exists():
            continue
        artifact = open_artifact(work / f"{name}.moec")
        for record in artifact.program().kernels:
            kernel = record["name"]
            text = find_kernel(artifact, kernel, None).source("cuda") if record["launches"] else ""
            digest = hashlib.sha256(text.partition("\n\n")[2].encode()).hexdigest()
            if not text or digest in seen:
                continue
            seen.add(digest)
            folder, what = work / "kernels" / name / kernel, f"{name}/{kernel}"
            arguments = [str(work / f"{name}.moec"), kernel, str(folder), *emulated]
            yield FirstLightStep(f"kernel {what}", [*itself, "--run-kernel", *arguments], folder=ROOT)
            built = [str(folder / kernel)]
            for check in ("memcheck", "racecheck"):
                command = ["compute-sanitizer", "--tool", check, "--error-exitcode", "9", *built]
                yield tool_step(f"{check} {what}", command, folder)
            if "wgmma" in text:
                yield FirstLightStep(f"phases {what}", [*itself, "--clock-kernel", *arguments], folder=ROOT)


def tool_step(name: str, command: Sequence[str], folder: pathlib.Path = ROOT) -> FirstLightStep:
    """Make a step that one of NVIDIA's tools takes."""
    from moec.targets.cuda.nvcc import find_tool

    tool = find_tool(command[0])
    absent = None if tool else f"{command[0]} was not found"
    return FirstLightStep(name, [str(tool), *command[1:]], folder=folder, absent=absent)


def run_kernel(artifact: str, kernel: str, folder: pathlib.Path, *, emulate: bool, clocked: bool) -> int:
    """Write a kernel's program, build it, and run it. Returns its exit code."""
    import phase_clocks

    from moec.runtime.artifact import open_artifact
    from moec.simulators.cuda.standalone import build_standalone
    from moec.targets.cuda.nvcc import find_tool
    from moec.tools.standalone import write_standalone

    opened = open_artifact(artifact)
    if not clocked:
        write_standalone(opened, kernel, folder)
    source, program = folder / f"{kernel}.cu", folder / kernel
    if clocked:
        text = phase_clocks.clocked(source.read_text(encoding="utf-8"))
        source, program = folder / f"{kernel}_clocked.cu", folder / f"{kernel}_clocked"
        source.write_text(text, encoding="utf-8")
    if emulate:
        build_standalone(source, program)
    else:
        real = opened.program().architecture
        code = f"arch={real.replace('sm_', 'compute_')},code={real}"
        command = [str(find_tool("nvcc")), "-w", "-lineinfo", "-std=c++17", "-gencode", code, str(source)]
        subprocess.run([*command, "-o", str(program)], check=True)
    return subprocess.run([program], cwd=folder, check=False).returncode


def architecture() -> str:
    """Select the architecture to compile for, by the GPU at hand. Raises MoecError where there is none."""
    from moec.common.errors import MoecError
    from moec.targets.cuda.device.driver import open_driver
    from moec.targets.cuda.device.gpu import best_binary
    from moec.targets.cuda.hardware.architectures import LIMITS

    gpus = open_driver().gpus()
    if not gpus:
        raise MoecError("the driver finds no GPU; --emulate tries the steps without one")
    return best_binary(list(LIMITS), gpus[0].capability, "moec")


def about(emulate: bool) -> dict[str, Any]:
    """Identify the code and the machine of a report."""
    import moec

    revision, changes = (
        subprocess.run(["git", *command], cwd=ROOT, capture_output=True, check=False).stdout
        for command in (["rev-parse", "HEAD"], ["diff", "HEAD"])
    )
    code = {"revision": revision.decode().strip(), "changes": hashlib.sha256(changes).hexdigest()[:12]}
    return {"version": moec.__version__, **code, "emulated": emulate}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=pathlib.Path, default=pathlib.Path("first_light.json"))
    parser.add_argument("--work", type=pathlib.Path, help="where programs are made; default: beside the report")
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--only", default="", metavar="BEGINNING", help="of the names of steps to take")
    for way in ("--run-kernel", "--clock-kernel"):
        parser.add_argument(way, nargs=3, metavar=("ART", "KERNEL", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=pathlib.Path, metavar="DIR", help="make the kit that is carried to a GPU")
    parser.add_argument("--python", default="3.12", help="the version of Python that the kit is for")
    asked = parser.parse_args(arguments)
    if kernel := asked.run_kernel or asked.clock_kernel:
        clocked = asked.clock_kernel is not None
        return run_kernel(kernel[0], kernel[1], pathlib.Path(kernel[2]), emulate=asked.emulate, clocked=clocked)
    from moec.common.errors import MoecError

    try:
        return tour(asked) if asked.pack is None else pack_kit(asked)
    except (MoecError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def pack_kit(asked: argparse.Namespace) -> int:
    """Make the kit and print its size."""
    from kit.packing import LARGEST, pack

    size = pack(asked.pack, asked.python, lambda what: print(f"packing {what}", flush=True), asked.only)
    print(f"{asked.pack}: {size / 2**20:.1f} MiB, of at most {LARGEST >> 20}; run {asked.pack}/run.sh 1")
    return 0


def tour(asked: argparse.Namespace) -> int:
    """Take the requested steps that were not passed before. Returns 1 where one failed."""
    report = FirstLightReport(asked.report, _MARK, about(asked.emulate))
    work = (asked.work or asked.report.with_suffix("")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for step in steps(work, asked.emulate):
        needed = step.name.startswith((asked.only, "compile ", "kernel "))
        result = report.results.get(step.name, {})
        if needed and result.get("outcome") != PASSED:
            result = take(step)
            report.add(step.name, result)
            print(f"{result['outcome']:9} {result['seconds']:7.1f} s  {step.name}", flush=True)
        outcomes.append(result.get("outcome"))
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, TIMED_OUT, ABSENT))
    for name, result in report.results.items():
        if result["outcome"] in (FAILED, TIMED_OUT):
            print(f"\n{name}: {result['outcome']}\n{result['output'][-SHOWN_OUTPUT:].strip()}")
    print(f"{counts}; the report: {asked.report}")
    return 1 if FAILED in outcomes or TIMED_OUT in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
