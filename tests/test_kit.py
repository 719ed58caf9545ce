"""The kit that is carried to a GPU: packed here, and run from its folder by a Python that has no moec."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

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


def test_the_report_has_failures_first_and_at_most_200_lines(tmp_path):
    from kit.carried.texts import LINES, write_text

    results = {f"fine {place}": {"outcome": "passed", "output": "* 1 us\n" * 3, "seconds": 1} for place in range(90)}
    results["bad"] = {"outcome": "failed", "output": "why\n", "seconds": 1}
    results["none"] = {"outcome": "absent", "output": "no GPU", "seconds": 0}
    write_text(tmp_path / "report.txt", results, [{"name": "later"}])
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert lines[:3] == ["90 passed, 1 failed, 0 timed out, 1 absent, 1 not taken", "failed: bad", "    why"]
    assert len(lines) == LINES and lines[-1].endswith("more lines: report.json has all")


def run(kit: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, "HOME": str(kit), "PYTHON": sys.executable}
    command = [str(kit / "run.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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
    (blob,) = {
        each["blob"] for each in json.loads((kit / "contents/tapes/bfloat16-moe_combine.json").read_text())["expected"]
    }
    content = np.fromfile(kit / "contents/blobs" / blob, np.uint8)
    (~content).tofile(kit / "contents/blobs" / blob)
    (kit / "emulated.json").unlink()
    done = run(kit, "1", "--emulate", "--only", "kernel bfloat16/moe_combine")
    assert done.returncode == 1 and "1 failed" in done.stdout
    assert first_light.main(["--pack", str(kit)]) == 2  # a folder with files is left alone


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's structures as they are on Linux")
def test_structures_of_the_driver_are_those_of_its_header(tmp_path):
    from kit.carried import gpu

    from moec.targets.cuda.nvcc import find_tool

    nvcc = find_tool("nvcc")
    header = None if nvcc is None else nvcc.resolve().parent.parent / "include" / "cuda.h"
    if header is None or not header.exists():
        pytest.skip("no cuda.h")
    sizes = {
        "sizeof(CUlaunchConfig)": gpu.ctypes.sizeof(gpu.LaunchConfig),
        "offsetof(CUlaunchConfig, hStream)": gpu.LaunchConfig.stream.offset,
        "offsetof(CUlaunchConfig, attrs)": gpu.LaunchConfig.attributes.offset,
        "offsetof(CUlaunchConfig, numAttrs)": gpu.LaunchConfig.count.offset,
        "sizeof(CUlaunchAttribute)": gpu.ctypes.sizeof(gpu.LaunchAttribute),
        "offsetof(CUlaunchAttribute, value.clusterDim.x)": gpu.LaunchAttribute.x.offset,
        "offsetof(CUlaunchAttribute, value.programmaticStreamSerializationAllowed)": gpu.LaunchAttribute.x.offset,
        "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION": gpu._CLUSTER,
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": gpu._EARLY,
        "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": gpu._SHARED_BYTES,
        "CU_TENSOR_MAP_DATA_TYPE_BFLOAT16": gpu._MAP_TYPES["bfloat16"],
        "CU_TENSOR_MAP_DATA_TYPE_FLOAT16": gpu._MAP_TYPES["float16"],
        "CU_TENSOR_MAP_DATA_TYPE_FLOAT32": gpu._MAP_TYPES["float32"],
        "CU_TENSOR_MAP_DATA_TYPE_UINT8": gpu._MAP_TYPES["uint8"],
    }
    checks = "".join(f'static_assert({what} == {size}, "{what}");\n' for what, size in sizes.items())
    program = tmp_path / "sizes.cpp"
    program.write_text(f"#include <cstddef>\n#include <cuda.h>\n{checks}")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-w", f"-I{header.parent}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
