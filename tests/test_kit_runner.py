"""The runner of the kit, on a kit of steps in Python: outcomes, reports, signals, and folders that it cannot use."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import types
import zipfile

import pytest

TOOLS = pathlib.Path(__file__).resolve().parent.parent / "tools"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STEP = "import sys\nsys.argv[1:3] = []\nexec(sys.argv.pop(1))\n"
COUNT = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write('.')"


@pytest.fixture(scope="module", autouse=True)
def tools_on_path():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


class Kit:
    """A kit whose folder has a space in its name."""

    def __init__(self, folder: pathlib.Path) -> None:
        from kit.packing import write_runner

        self.folder = folder / "a kit"
        self.folder.mkdir()
        write_runner(self.folder, VERSION)
        (self.folder / "carried" / "text_step.py").write_text(STEP)
        self.counted = folder / "count"

    def pack(self, texts: dict[str, str], **options: dict[str, object]) -> None:
        """Pack steps by name; ``options``: fields of a step that differ, by its name."""
        from kit.carried.contents import PACKED, write_checksum
        from kit.plan import KitPlan, KitStep

        plan = KitPlan()
        for place, (name, text) in enumerate(texts.items()):
            fields = {"module": "text_step", "needs": (), "emulated": False, "arguments": (text, str(self.counted))}
            plan.add(KitStep(1, place, name, **{**fields, **options.get(name, {})}))
        about = {"python": VERSION, "revision": "r1", "architecture": "sm_90a", "left_out": {"model m": "why not"}}
        packed = self.folder / PACKED
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("about.json", json.dumps(about))
            archive.writestr("plan.json", json.dumps(plan.as_data()))
            archive.writestr("large", bytes(1 << 20))
        write_checksum(packed)

    def begin(self, *arguments: str, path: str = os.defpath, **options) -> subprocess.Popen[str]:
        environment = {"PATH": path, "HOME": str(self.folder), "PYTHON": sys.executable}
        command = [str(self.folder / "run.sh"), "1", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, **pipes, **options)

    def run(self, *arguments: str, **options) -> tuple[int, str]:
        process = self.begin(*arguments, **options)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def text(self) -> list[str]:
        return (self.folder / "report.1.txt").read_text().splitlines()


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path)


def test_steps_after_a_failure_are_taken_and_passed_ones_are_not_repeated(kit):
    kit.pack({"fine": COUNT, "bad": "print('* 1 us'); 1 / 0", "last": COUNT, "gpu": COUNT}, gpu={"needs": ("no_such",)})
    code, said = kit.run()
    assert code == 1 and "2 passed, 1 failed, 0 timed out, 1 absent, 0 not taken" in said
    assert "absent: no no_such" in said
    lines = kit.text()
    assert lines[1:4] == ["moec r1, for sm_90a", "not in the kit: model m: why not", "failed: bad"]
    assert "    1 us" in lines and any("ZeroDivisionError" in line for line in lines)
    assert kit.run()[0] == 1 and kit.counted.read_text() == ".."
    code, said = kit.run("--again")
    assert kit.counted.read_text() == ".." and code == 1 and "1 failed" in said
    kit.pack({"fine": COUNT, "bad": COUNT, "last": COUNT})
    code, said = kit.run()
    assert code == 2 and "contents: not the contents of this kit; remove it" in said


def test_racecheck_is_counted_apart(kit):
    kit.pack({"fine": COUNT, "race": "1 / 0"}, race={"apart": True})
    code, said = kit.run()
    assert code == 0
    assert "1 passed, 0 failed, 0 timed out, 0 absent, 0 not taken; apart: 0 passed, 1 failed" in said
    assert "apart, failed: race" in kit.text()


def test_a_call_that_is_stopped_goes_on_later_and_leaves_no_process(kit):
    process = "import os, sys, time, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    kit.pack({"fine": "print('* 7')", "long": process, "later": ""})
    call = kit.begin()
    wait_for(kit.counted.exists)
    refused, said = kit.run()
    assert refused == 2 and "another call runs there" in said
    call.send_signal(signal.SIGTERM)
    said, _ = call.communicate(timeout=60)
    assert call.returncode == 128 + signal.SIGTERM and "1 passed" in said and "2 steps are left" in said
    step = pathlib.Path("/proc", kit.counted.read_text(), "status")
    wait_for(lambda: not step.exists() or "zombie" in step.read_text())
    code, said = kit.run("--only", "later")
    assert code == 0 and "2 passed" in said and "1 not taken" in said


def test_a_call_under_nohup_goes_on_without_its_terminal(kit):
    kit.pack({"long": f"{COUNT}; import time; time.sleep(0.5)", "later": COUNT})
    call = kit.begin(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(kit.counted.exists)
    call.send_signal(signal.SIGHUP)
    said, _ = call.communicate(timeout=60)
    assert call.returncode == 0 and "2 passed" in said


def test_a_call_goes_on_where_nobody_reads_what_it_says(kit):
    kit.pack({"fine": COUNT, "later": COUNT})
    call = kit.begin()
    call.stdout.close()
    assert call.wait(60) == 0 and kit.text()[0].startswith("2 passed")


SLEEPING = """
import os, pathlib, sys, time
from carried.places import end_with_parent
end_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("tool", [None, "memcheck"])
def test_a_step_ends_with_a_runner_that_was_killed(kit, tmp_path, tool):
    fields = {"module": "tool_step", "arguments": (tool, "text_step", SLEEPING, str(kit.counted))} if tool else {}
    write_tools(tmp_path)
    kit.pack({"long": SLEEPING}, long=fields)
    call = kit.begin(path=f"{tmp_path}:{os.defpath}")
    wait_for(lambda: kit.counted.exists() and kit.counted.read_text())
    call.kill()
    call.communicate(timeout=60)
    step = pathlib.Path("/proc", kit.counted.read_text(), "status")
    wait_for(lambda: not step.exists() or "zombie" in step.read_text())


@pytest.mark.parametrize("damage", ["python", "cut", "byte", "missing", "work", "room", "report", "contents"])
def test_what_a_kit_cannot_use_is_said_in_one_line(kit, tmp_path, damage):
    kit.pack({"fine": COUNT})
    packed, options, arguments = kit.folder / "contents.zip", {}, []
    if damage == "python":
        runner = kit.folder / "run.sh"
        runner.write_text(runner.read_text().replace(VERSION, "3.1"))
    if damage in ("cut", "byte"):
        content = packed.read_bytes()
        packed.write_bytes(content[:1000] if damage == "cut" else content[:1000] + b"?" + content[1001:])
    if damage == "contents":
        (kit.folder / "contents").mkdir()
    if damage == "missing":
        packed.unlink()
    if damage == "work":
        arguments = ["--work", str(packed / "folder")]
    if damage == "room":
        options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    if damage == "report":
        (kit.folder / "report.json").write_text("{}")
    code, said = kit.run(*arguments, **options)
    assert code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1
    expected = {
        "python": "is not Python 3.1, which the kit is for; set PYTHON",
        "cut": "damaged",
        "byte": "damaged",
        "missing": "No such file",
        "contents": "not the contents of this kit",
        "work": "choose another folder by --work DIR",
        "room": "File too large",
        "report": "not a report of",
    }
    assert expected[damage] in said
    assert not kit.counted.exists() and not (kit.folder / "contents.part").exists()


def test_steps_go_on_where_the_report_cannot_be_written(kit, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    lost = f"import shutil; shutil.rmtree({str(folder)!r}); print('* found')"
    kit.pack({"lost": lost, "fine": COUNT})
    code, said = kit.run("--report", str(folder / "report.json"))
    assert code == 2 and "* found" in said and "error: the report was not written" in said
    assert kit.counted.read_text() == "."


def test_everything_can_be_written_elsewhere(kit, tmp_path):
    kit.pack({"fine": COUNT})
    before = sorted(kit.folder.iterdir())
    assert kit.run("--work", "work", cwd=tmp_path)[0] == 0
    assert (tmp_path / "work" / "report.json").exists() and (tmp_path / "work" / "report.1.txt").exists()
    assert [path for path in sorted(kit.folder.iterdir()) if path not in before] == []


SUMMARY = "========= ERROR SUMMARY: 0 errors"
TOOL = """#!/bin/sh
echo "$(basename "$0") $*"
[ "$1" != --import ] || { echo "  Duration   us   12.5"; exit; }
while [ $# -gt 0 ] && [ "$1" != "%s" ]; do shift; done
"$@"
code=$?
echo "========= ERROR SUMMARY: $code errors"
exit $code
"""


@pytest.mark.parametrize(
    ("tool", "called", "found"),
    [
        (
            "memcheck",
            "compute-sanitizer --tool memcheck --error-exitcode 9 --print-limit 10",
            "========= ERROR SUMMARY: 0 errors",
        ),
        (
            "racecheck",
            "compute-sanitizer --tool racecheck --error-exitcode 9 --print-limit 10",
            "========= ERROR SUMMARY: 0 errors",
        ),
        ("ncu", "--kernel-name product_kernel --launch-skip 1 --launch-count 1", "Duration us 12.5"),
    ],
)
def test_tools_run_around_steps(kit, tmp_path, tool, called, found):
    write_tools(tmp_path)
    fields = {"module": "tool_step"}
    step = (tool, "text_step", "print(6 * 7)", "product_kernel")
    wrong = (tool, "text_step", "import sys; sys.exit(4)", "product_kernel")
    kit.pack({"fine": "", "bad": ""}, fine={**fields, "arguments": step}, bad={**fields, "arguments": wrong})
    code, _ = kit.run(path=f"{tmp_path}:{os.defpath}")
    assert code == 1
    results = json.loads((kit.folder / "report.json").read_text())["steps"]
    assert [results[name]["outcome"] for name in ("fine", "bad")] == ["passed", "failed"]
    assert f"* {found}\n" in results["fine"]["output"]
    assert "* 42" not in results["fine"]["output"]
    assert called in results["bad"]["output"]


@pytest.mark.parametrize(
    ("driver", "capability", "fault"),
    [
        (13000, (9, 0), None),
        (13020, (9, 0), None),
        (12040, (9, 0), "the driver is for CUDA 12.4; the kit needs one for 13.0 or later"),
        (13000, (8, 0), "the GPU has compute capability 8.0; the kit's code is for 9.0"),
        (13000, (10, 0), "the GPU has compute capability 10.0; the kit's code is for 9.0"),
        (None, (9, 0), "no GPU: the driver says error 803"),
    ],
)
def test_a_gpu_that_the_kit_is_not_for_is_absent(monkeypatch, driver, capability, fault):
    from kit.carried import present

    def filled(pointer, value: int) -> int:
        pointer._obj.value = value
        return 0

    calls = {
        "cuInit": lambda _flags: 803 if driver is None else 0,
        "cuDeviceGetCount": lambda count: filled(count, 1),
        "cuDeviceGet": lambda device, _which: filled(device, 5),
        "cuDriverGetVersion": lambda version: filled(version, driver),
        "cuDeviceGetAttribute": lambda number, which, _device: filled(number, capability[which - 75]),
    }
    monkeypatch.setattr(present.ctypes, "CDLL", lambda _name: types.SimpleNamespace(**calls))
    assert present.gpu_fault() == fault


def write_tools(folder: pathlib.Path) -> None:
    """Write stand-ins for NVIDIA's tools, which run what they are given."""
    for name in ("ncu", "compute-sanitizer"):
        (folder / name).write_text(TOOL % sys.executable)
        (folder / name).chmod(0o755)


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
