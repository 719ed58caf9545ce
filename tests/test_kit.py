"""The kit that is carried to a GPU: packed here, and run from its folder by a Python that has no moec."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

TOOLS = pathlib.Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module", autouse=True)
def tools_on_path():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def tensor(dtype: str) -> dict[str, str]:
    return {"name": "y", "dtype": dtype}


def test_numbers_are_compared_as_programs_of_one_kernel_do():
    from kit.carried.tape import comparison

    before, expected = np.zeros(4, np.float32), np.array([0, 1, 2, np.inf], np.float32)
    near = expected + np.array([0, 1e-5, 0, 0], np.float32)
    far = expected + np.array([0, 1e-2, 0, 0], np.float32)
    arrays = expected.tobytes(), before.tobytes()
    assert comparison(tensor("float32"), expected.tobytes(), *arrays) == ("y: the same bits", True)
    assert comparison(tensor("float32"), near.tobytes(), *arrays)[1]
    assert not comparison(tensor("float32"), far.tobytes(), *arrays)[1]
    lost = np.array([0, 1, np.nan, np.inf], np.float32)
    assert not comparison(tensor("float32"), lost.tobytes(), *arrays)[1]
    assert not comparison(tensor("int32"), near.tobytes(), *arrays)[1]


ABOUT = {"revision": "r1", "architecture": "sm_90a", "left_out": {}}


def step(name: str, *, apart: bool = False) -> dict[str, object]:
    return {"name": name, "apart": apart}


def test_the_report_has_failures_first_and_at_most_200_lines(tmp_path):
    from kit.carried.texts import LINES, write_text

    results = {f"fine {place}": {"outcome": "passed", "output": "* 1 us\n" * 3, "seconds": 1} for place in range(90)}
    results["bad"] = {"outcome": "failed", "output": "why\n", "seconds": 1}
    results["none"] = {"outcome": "absent", "output": "no GPU", "seconds": 0}
    write_text(tmp_path / "report.txt", results, [step(name) for name in [*results, "later"]], ABOUT)
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert lines[0] == "90 passed, 1 failed, 0 timed out, 1 absent, 1 not taken"
    assert lines[2:4] == ["failed: bad", "    why"]
    assert len(lines) == LINES and lines[-1].endswith("more lines: report.json has all")


def test_many_failures_leave_room_for_what_was_found(tmp_path):
    from kit.carried.texts import LINES, write_text

    results = {
        f"bad {place}": {"outcome": "failed", "output": f"{place}\nerror {place % 50}", "seconds": 1}
        for place in range(150)
    }
    results["fine"] = {"outcome": "passed", "output": "* 480 TFLOP/s\n", "seconds": 1}
    write_text(tmp_path / "report.txt", results, [step(name) for name in results], ABOUT)
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert len(lines) < LINES and "    480 TFLOP/s" in lines
    assert "failed: bad 0, bad 50, bad 100" in lines and "    error 0" in lines


def run(kit: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, "HOME": str(kit), "PYTHON": sys.executable}
    command = [str(kit / "run.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_runtime_of_a_kit_imports_nothing_that_it_lacks():
    """Only imports when a module is loaded: those inside functions are for work that a kit does not do."""
    from kit.runtime_files import ROOT, own_files

    files = {target.as_posix(): source for source, target in own_files()}
    present = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files}
    assert "moec.runtime.model" in present and "moec.simulators.cuda.driver" in present
    lacking = {
        (name, module)
        for name, source in files.items()
        if name.endswith(".py")
        for module in modules_of(ast.parse((ROOT / source).read_text(encoding="utf-8")))
        if module not in present
    }
    assert not lacking


def modules_of(tree: ast.Module) -> Iterator[str]:
    """The modules of moec that are imported as a module is loaded."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moec."):
            yield str(node.module)


@pytest.mark.parametrize(
    ("repeated", "agrees"),
    [
        (b"\x05\xff\xff", True),  # writes the first byte, and leaves the others alone
        (b"\x05\x02\xff", True),  # writes the second one, too, with what was there
        (b"\x06\xff\xff", False),  # the result depends on the old content
        (b"\x05\x03\xff", False),
        (b"\xff\xff\xff", False),
    ],
)
def test_old_content_is_dropped_where_no_result_depends_on_it(repeated, agrees):
    from kit.recording import KitTensor, is_repeated

    tensor = KitTensor("y", "uint8", [3], 0, 3, before=b"\x01\x02\x03", after=b"\x05\x02\x03")
    assert is_repeated(tensor, repeated) == agrees


@pytest.mark.parametrize(
    ("fixed", "launches", "text", "is_right"),
    [
        ([], 7, "steps run as graphs: 7 launches of graphs", True),
        ([], None, "steps run as graphs", True),
        ([], 6, "steps run as graphs: 6 launches of graphs", False),
        (["kv_b (moec.Linear)"], 0, "kv_b (moec.Linear)", True),
        (["kv_b (moec.Linear)"], None, "kv_b (moec.Linear)", True),
        (["kv_b (moec.Linear)"], 1, "kv_b (moec.Linear)", False),
        (["a", "b", "c", "d", "e"], 0, "a, b, c and 2 more", True),
    ],
)
def test_steps_run_as_graphs_except_where_the_program_names_a_reason(fixed, launches, text, is_right):
    from kit.carried.model_step import graphs_of_steps

    said, agrees = graphs_of_steps(fixed, 8, launches)
    assert agrees == is_right
    assert said.endswith(text)
    assert said.startswith("steps run without graphs") == bool(fixed)


@pytest.mark.nightly
def test_a_kit_runs_in_the_emulator_and_goes_on_where_it_was(tmp_path, capsys):
    import first_light

    kit, version = tmp_path / "kit", f"{sys.version_info.major}.{sys.version_info.minor}"
    assert first_light.main(["--pack", str(kit), "--python", version, "--only", "bfloat16"]) == 0
    assert " MiB, of at most 60; run " in capsys.readouterr().out
    done = run(kit, "1", "--emulate", "--only", "kernel bfloat16/moe_combin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 0 failed" in done.stdout
    assert "2 passed, 0 failed" in run(kit, "1", "--emulate", "--only", "kernel bfloat16/moe_combin").stdout
    steps = json.loads((kit / "emulated.json").read_text())["steps"]
    assert all("the same bits" in step["output"] for step in steps.values())
    assert "absent: no GPU" in run(kit, "1", "--only", "kernel bfloat16/moe_combine").stdout
    second = run(kit, "2", "--emulate", "--only", "model", "--report", str(kit / "two.json"))
    assert second.returncode == 0 and "1 passed, 0 failed" in second.stdout
    last = run(kit, "3", "--emulate", "--report", str(kit / "three.json"))
    assert last.returncode == 0 and "absent: no GPU" in last.stdout and "0 passed, 0 failed" in last.stdout
    tape = json.loads((kit / "contents" / "tapes" / "bfloat16-moe_combine.json").read_text())
    (blob,) = {expected["blob"] for expected in tape["expected"]}
    content = np.fromfile(kit / "contents/blobs" / blob, np.uint8)
    (~content).tofile(kit / "contents/blobs" / blob)
    (kit / "emulated.json").unlink()
    done = run(kit, "1", "--emulate", "--only", "kernel bfloat16/moe_combine")
    assert done.returncode == 1 and "1 failed" in done.stdout
    assert first_light.main(["--pack", str(kit)]) == 2  # a folder with files is left alone


@pytest.mark.nightly
def test_a_model_of_a_kit_runs_with_tensor_cores_and_as_graphs(tmp_path):
    import first_light

    kit, version = tmp_path / "kit", f"{sys.version_info.major}.{sys.version_info.minor}"
    assert first_light.main(["--pack", str(kit), "--python", version, "--only", "deepseek_v3"]) == 0
    done = run(kit, "2", "--emulate")
    assert done.returncode == 0 and "1 passed, 0 failed" in done.stdout, done.stdout
    text = (kit / "emulated.2.txt").read_text()
    assert "not in the kit" not in text and "as CUDA graphs: bits of 8 steps" in text
    assert "steps run without graphs" in text and "(moec.Linear)" in text
    tapes = kit / "contents" / "tapes"
    assert list(tapes.glob("deepseek_v3-gemm_mma*"))
    assert list(tapes.glob("deepseek_v3-moe_grouped_gemv*")), "the last layer, which has the experts, takes one token"


LAUNCHING = """
import pathlib, sys
from kit.carried.gpu import DriverError, KitGpu

code, gpu = pathlib.Path(sys.argv[1], "code.fatbin"), KitGpu()
code.write_bytes(b"code")
print(gpu.name)
address = gpu.memory(1000)
gpu.write(address, b"abcd" * 250)
gpu.clear(address + 4, 2, 0x2D)
print(gpu.read(address, 8))
numbers = [96, 200, 400, 64, 8, 1, 1, 0, 3, 2, 0]
tensor_map = {"dtype": "bfloat16", "rank": 2, "address": 0x7000, "numbers": numbers}
arguments = [["pointer", 0x7F00], ["int32", -5], ["int64", 1 << 40], ["float32", 0.5], ["map", tensor_map]]
grid = {"clusterCtaIdx.x": 2, "blockIdx.x": 132, "blockIdx.y": 3, "threadIdx.x": 384}
shared = {**grid, "tirx.use_dyn_shared_memory": 204896}
gpu.launch(code, "product", arguments, shared, begins_early=True)
print(gpu.seconds(lambda: gpu.launch(code, "product", arguments, {"blockIdx.x": 7, "threadIdx.x": 32})))
gpu.captured(lambda: None)()
print(gpu.registers(code, "product"))
gpu.free(address)
code.with_name("other").write_bytes(b"no code")
try:
    gpu.launch(code.with_name("other"), "product", arguments, grid)
except DriverError as error:
    print(error)
"""
LAUNCHES = """function product
shared 204896
map 9 rank 2 address 0x7000 aligned 1: 96/64/1 200/8/1 400 modes 0 3 2 0
launch 132 3 1, 384 1 1, 204896 bytes: cluster 2 1 1 early 1 0x7f00 -5 1099511627776 0.5 0x5a
map 9 rank 2 address 0x7000 aligned 1: 96/64/1 200/8/1 400 modes 0 3 2 0
launch 7 1 1, 32 1 1, 0 bytes: 0x7f00 -5 1099511627776 0.5 0x5a
graph
"""


def test_the_driver_is_called_as_its_header_says(tmp_path):
    from moec.targets.cuda.nvcc import find_tool

    nvcc = find_tool("nvcc")
    homes = [pathlib.Path("/usr/local/cuda"), *([nvcc.resolve().parent.parent] if nvcc else [])]
    include = next((home / "include" for home in homes if (home / "include" / "cuda.h").exists()), None)
    if include is None or sys.platform != "linux":
        pytest.skip("no cuda.h")
    stub = pathlib.Path(__file__).parent / "driver_stub.cpp"
    library = ["-shared", "-fPIC", "-w", f"-I{include}", str(stub), "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(["g++", "-std=c++17", *library], check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "DRIVER_STUB_OUTPUT": str(tmp_path / "said"),
        "PYTHONPATH": str(TOOLS),
    }
    command = [sys.executable, "-c", LAUNCHING, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "stub 5, compute capability 9.0, 132 multiprocessors, driver for CUDA 13.0",
        "b'abcd--cd'",
        "0.0025",
        "168",
        "cuModuleLoadData: CUDA_ERROR_OF_STUB (200)",
    ]
    assert (tmp_path / "said").read_text() == LAUNCHES
    assert reason_of(environment) == ""
    assert reason_of({**environment, "DRIVER_STUB_VERSION": "12040"}) == (
        "the driver is for CUDA 12.4; the kit needs one for 13.0 or later\n"
    )


def reason_of(environment: dict[str, str]) -> str:
    """Why the kit finds no GPU that it can use."""
    command = [sys.executable, "-m", "kit.carried.present"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr
