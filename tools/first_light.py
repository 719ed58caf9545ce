"""First light: whatever moec has for an NVIDIA GPU, tried on one in one command, with a report.

    python tools/first_light.py                    # on a machine with a GPU
    python tools/first_light.py --emulate          # on any, to try the steps themselves: kernels run in the emulator
    python tools/first_light.py --only racecheck   # the steps whose names begin so, and what they need

Steps, each a process of its own under a time limit, so that a kernel that hangs costs one step: what the machine is;
a layer in each format, compiled and verified; each different kernel as a program of its own, under compute-sanitizer's
memcheck and racecheck, and with clocks in those that use wgmma; tests/gpu; benchmarks/gpu_moe.py. The report, one JSON
file, is written after each step: started again, steps that were passed are not repeated. Ends with 0 where none
failed, with 1 where one did, with 2 where the report is not one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERTS, WIDTH, HIDDEN = 8, 256, 128
FORMATS = {
    "bfloat16": ("bfloat16", "O2"),
    "float32": ("float", "O2"),
    "float16": ("float16", "O2"),
    "int8": ("bfloat16", "O2,quantize-experts{format=int8}"),
    "int4": ("bfloat16", "O2,quantize-experts{format=int4,group=32}"),
    "mxfp4": ("bfloat16", "O2,quantize-experts{format=mxfp4}"),
}
"""Formats of a layer, by their names in steps: the type of its numbers, and the passes."""
LAYER = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
layer ({dtype}[T,{width}] x, {dtype}[T,{experts}] logits) => ({dtype}[T,{width}] y) {{
    y = moec.MoE <k = 2> (x, logits, , up, down)
}}"""
SHORT, LONG = 180, 900
"""Seconds that a step may take."""
KEPT_OUTPUT, SHOWN_OUTPUT = 6000, 600
PASSED, FAILED, TIMED_OUT, ABSENT = "passed", "failed", "timed out", "absent"
_MARK = "moec_first_light"


@dataclasses.dataclass(frozen=True)
class FirstLightStep:
    """A step. ``absent``: reason why it cannot be taken here; None where it can."""

    name: str
    command: Sequence[str]
    seconds: int = SHORT
    folder: pathlib.Path = ROOT
    absent: str | None = None


class FirstLightReport:
    """Results by step, in a file that is always complete. Raises ValueError for a file that is no report, or that of
    other code or another machine."""

    def __init__(self, path: pathlib.Path, about: dict[str, Any]) -> None:
        self._path, self._about = path, about
        self.results: dict[str, dict[str, Any]] = {}
        if path.exists():
            with contextlib.suppress(ValueError, AttributeError):  # no JSON, or no object
                report = json.loads(path.read_text(encoding="utf-8"))
                if report.get(_MARK) == about:
                    self.results = report["steps"]
                    return
            raise ValueError(f"{path}: not a report of {about}; remove it or choose another --report")

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        text = json.dumps({_MARK: self._about, "steps": self.results}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, self._path)


def take(step: FirstLightStep) -> dict[str, Any]:
    """Take a step. Returns its outcome, the end of its output, and its seconds."""
    if step.absent is not None:
        return {"outcome": ABSENT, "output": step.absent, "seconds": 0.0}
    start = time.monotonic()
    if not step.folder.is_dir():
        return {"outcome": FAILED, "output": f"{step.folder}: its program was not made", "seconds": 0.0}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            step.command, cwd=step.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also kills the process' own children, and runs when this one is interrupted
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(max(said.seek(0, os.SEEK_END) - KEPT_OUTPUT, 0))
        output = said.read().decode(errors="replace")
    outcome = TIMED_OUT if code is None else PASSED if code == 0 else FAILED
    return {"outcome": outcome, "code": code, "output": output, "seconds": round(time.monotonic() - start, 1)}


def steps(work: pathlib.Path, emulate: bool) -> Iterator[FirstLightStep]:
    """Iterate over all steps. Those of kernels become known when their artifacts exist."""
    moec = [sys.executable, "-c", "from moec.cli.main import main; main()"]
    yield tool_step("nvidia-smi", ["nvidia-smi"])
    yield tool_step("nvcc", ["nvcc", "--version"])
    yield tool_step("compute-sanitizer", ["compute-sanitizer", "--version"])
    yield FirstLightStep("doctor", [*moec, "doctor"])
    target, emulated = ("cuda:sm_90a", ["--emulate"]) if emulate else (f"cuda:{architecture()}", [])
    for name, (_dtype, passes) in FORMATS.items():
        model, artifact = str(make_layer(name, work)), str(work / f"{name}.moec")
        compiling = [*moec, "compile", model, "-o", artifact, "--target", target, "--passes", passes]
        yield FirstLightStep(f"compile {name}", compiling, LONG)
        yield FirstLightStep(f"verify {name}", [*moec, "verify", model, artifact, *emulated])
    yield from kernel_steps(work, emulate)
    needs_gpu = "an emulator is no GPU" if emulate else None
    yield FirstLightStep("tests", [sys.executable, "-m", "pytest", "tests/gpu"], LONG, absent=needs_gpu)
    benchmark = [sys.executable, "benchmarks/gpu_moe.py", "--json", str(work / "gpu_moe.json")]
    yield FirstLightStep("benchmark", benchmark, LONG, absent=needs_gpu)


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
            yield FirstLightStep(f"kernel {what}", [*itself, "--run-kernel", *arguments])
            built = [str(folder / kernel)]
            for check in ("memcheck", "racecheck"):
                command = ["compute-sanitizer", "--tool", check, "--error-exitcode", "9", *built]
                yield tool_step(f"{check} {what}", command, folder)
            if "wgmma" in text:
                yield FirstLightStep(f"phases {what}", [*itself, "--clock-kernel", *arguments])


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


def make_layer(name: str, work: pathlib.Path) -> pathlib.Path:
    """Write a SwiGLU layer with random weights as a model file."""
    import ml_dtypes
    import numpy as np
    import onnx

    dtype = FORMATS[name][0]
    path = work / f"{name}.onnx"
    model = onnx.parser.parse_model(LAYER.format(dtype=dtype, width=WIDTH, experts=EXPERTS))
    random, numbers = np.random.default_rng(0), {"float": np.float32, "bfloat16": ml_dtypes.bfloat16}
    for weight, shape in {"up": (EXPERTS, 2 * HIDDEN, WIDTH), "down": (EXPERTS, WIDTH, HIDDEN)}.items():
        array = (random.standard_normal(shape) / np.sqrt(shape[2])).astype(numbers.get(dtype, np.float16))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight))
    onnx.save(model, path)
    return path


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
    asked = parser.parse_args(arguments)
    if kernel := asked.run_kernel or asked.clock_kernel:
        clocked = asked.clock_kernel is not None
        return run_kernel(kernel[0], kernel[1], pathlib.Path(kernel[2]), emulate=asked.emulate, clocked=clocked)
    from moec.common.errors import MoecError

    try:
        return tour(asked)
    except (MoecError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def tour(asked: argparse.Namespace) -> int:
    """Take the requested steps that were not passed before. Returns 1 where one failed."""
    report = FirstLightReport(asked.report, about(asked.emulate))
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
