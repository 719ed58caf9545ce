"""The tour of a machine with a GPU: steps that fail, hang or cannot be taken, its report, and clocks in kernels."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import sys
import time

import pytest

TOOLS = pathlib.Path(__file__).resolve().parent.parent / "tools"
PROGRAM = """__forceinline__ __device__ void wait_for_stage(void* barrier) {
    asm volatile("mbarrier.try_wait.parity.b64 P1, [%0];");
}
__forceinline__ __device__ int rank_of_thread() {
    return threadIdx.x;
}
extern "C" __global__ void product_kernel(float* out) {
  wait_for_stage(out);
}
int main() {
  product_kernel<<<1, 128>>>(nullptr);
  check(cudaDeviceSynchronize(), "the kernel");
}
"""


@pytest.fixture(scope="module")
def tool():
    results = {}
    sys.path.insert(0, str(TOOLS))
    try:
        for name in ("phase_clocks", "first_light"):
            spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
            results[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(results[name])
        yield results
    finally:
        sys.path.remove(str(TOOLS))
        for name in results:
            del sys.modules[name]


@pytest.fixture
def light(tool):
    return tool["first_light"]


def python(light, name: str, text: str, **options):
    return light.FirstLightStep(name, [sys.executable, "-c", text], **options)


def test_outcomes_of_steps(light):
    fine = light.take(python(light, "fine", "print('said')"))
    assert (fine["outcome"], fine["output"]) == ("passed", "said\n")
    wrong = light.take(python(light, "wrong", "import sys; sys.exit('why')"))
    assert (wrong["outcome"], wrong["code"], wrong["output"]) == ("failed", 1, "why\n")
    assert light.take(light.FirstLightStep("none", ["nothing"], absent="no GPU"))["outcome"] == "absent"
    missing = light.take(python(light, "unmade", "", folder=pathlib.Path("nowhere")))
    assert (missing["outcome"], missing["output"]) == ("failed", "nowhere: its program was not made")


def test_a_step_needs_no_room_on_a_disk(light, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    assert light.take(python(light, "fine", "print('said')"))["output"] == "said\n"


def test_a_step_that_hangs_costs_its_time_and_leaves_no_process_behind(light, tmp_path):
    grandchild = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    text = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {grandchild!r}])"
    result = light.take(python(light, "hangs", text, seconds=4, folder=tmp_path))
    assert (result["outcome"], result["output"]) == ("timed out", "begun\n")
    process, end = pathlib.Path("/proc") / (tmp_path / "pid").read_text(), time.monotonic() + 10
    while process.exists() and "zombie" not in (process / "status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def tour(light, tmp_path, monkeypatch, capsys):
    """Run the tool on steps of Python texts by name; what it returned and printed."""

    def run(texts: dict[str, str], *arguments: str) -> tuple[int, str]:
        built = [python(light, name, text, folder=tmp_path) for name, text in texts.items()]
        monkeypatch.setattr(light, "steps", lambda _work, _emulate: iter(built))
        code = light.main(["--emulate", "--report", str(tmp_path / "report.json"), *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_a_tour_goes_on_where_it_stopped(tour, tmp_path):
    count = "import pathlib; pathlib.Path('count').open('a').write('.')"
    code, said = tour({"first": count, "second": "1 / 0"})
    assert code == 1 and "1 passed, 1 failed" in said and "second: failed" in said and "ZeroDivisionError" in said
    code, said = tour({"first": count, "second": count}, "--only", "sec")
    assert code == 0 and "passed" in said
    assert (tmp_path / "count").read_text() == ".."  # what was passed is not repeated
    assert [path.name for path in tmp_path.glob("*report*")].count("report.json") == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert {name: step["outcome"] for name, step in steps.items()} == {"first": "passed", "second": "passed"}


@pytest.mark.parametrize("content", ["[]", "{}", '{"moec_first_light": {"version": "0"}, "steps": {}}', "no JSON"])
def test_a_file_that_is_no_report_of_this_is_left_alone(tour, tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    code, said = tour({"first": "print(1)"})
    assert code == 2 and re.match(r"error: \S+report.json: not a report of .*; remove it or choose another", said)
    assert (tmp_path / "report.json").read_text() == content


def test_clocks_are_around_the_kernel_and_what_waits(tool):
    clocked = tool["phase_clocks"].clocked(PROGRAM)
    assert clocked.index("struct PhaseClock") < clocked.index("wait_for_stage")
    assert "wait_for_stage(void* barrier) {\n  const PhaseClock phase_clock(1);\n" in clocked
    assert "rank_of_thread() {\n    return" in clocked
    assert "product_kernel(float* out) {\n  const PhaseClock phase_clock(0);\n" in clocked
    assert clocked.index("cudaDeviceSynchronize") < clocked.index("cudaMemcpyFromSymbol")


@pytest.mark.parametrize("text", ["int main() {}", PROGRAM.replace("__global__", ""), PROGRAM.replace("check(", "(")])
def test_clocks_need_a_program_of_a_kernel(tool, text):
    with pytest.raises(ValueError, match="expected a program of one kernel"):
        tool["phase_clocks"].clocked(text)


@pytest.mark.nightly
def test_the_tour_through_the_emulator(light, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(light, "FORMATS", {"bfloat16": light.FORMATS["bfloat16"]})
    code = light.main(["--emulate", "--report", str(tmp_path / "report.json")])
    said = capsys.readouterr().out
    assert code == 0 and "0 failed, 0 timed out" in said
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert steps["verify bfloat16"]["outcome"] == steps["kernel bfloat16/moe_combine"]["outcome"] == "passed"
    phases = [step["output"] for name, step in steps.items() if name.startswith("phases ")]
    assert phases and all("waits for products" in output for output in phases)
