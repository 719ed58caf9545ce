"""Commands whose output is closed or full, or that are interrupted, end quickly and quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import moec
from moec.runtime.artifact import open_artifact

from ..command import START

PRODUCTS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make model.onnx of some products, which takes a while to compile; model.moec of it; inputs.npz."""
    return products(PRODUCTS, tmp_path_factory.mktemp("ending"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Make model.moec of one product."""
    return products(1, tmp_path_factory.mktemp("small"))


def products(count, folder):
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((40 + n, 41 + n)).astype(np.float32) / 8 for n in range(count)]
    nodes = [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(len(weights))]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info(f"x{count}", TensorProto.FLOAT, ["n", 40 + count])],
        [onnx.numpy_helper.from_array(weight, f"w{n}") for n, weight in enumerate(weights)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "model.onnx"
    )
    moec.compile(folder / "model.onnx", output=folder / "model.moec", passes="O1")
    np.savez(folder / "inputs.npz", x0=np.ones((200_000, 40), np.float32))
    return folder


def test_a_reader_that_goes_away_ends_it_quietly(small):
    with subprocess.Popen(
        [*START, "inspect", str(small / "model.moec"), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device to write to")
@pytest.mark.parametrize("command", [("pipeline", "-O2"), ("inspect", "model.moec", "--json"), ("--help",)])
def test_a_full_device_is_one_line(small, command):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*START, *command], stdout=full, stderr=subprocess.PIPE, text=True, cwd=small)
    assert done.stderr == "error: standard output: No space left on device\n"
    assert done.returncode == 2


MAIN = f"{sys.executable} -c 'from moec.cli.main import main; main()'"


def test_no_output_at_all_is_fine():
    assert subprocess.run(f"{MAIN} pipeline -O1 >&-", shell=True).returncode == 0


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_errors_of_a_process_without_streams_are_no_defects_and_go_nowhere_else(tmp_path, closed):
    command = f"{MAIN} generate {tmp_path}/none --prompt - {closed}"
    done = subprocess.run(command, shell=True, input="a", capture_output=True, text=True)
    said = f"error: {tmp_path}/none: no such artifact; make one with: moec compile MODEL -o {tmp_path}/none\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "" if "2>" in closed else said)


COMMANDS = [
    ["compile", "model.onnx", "-o", "new.moec"],
    ["compile", "model.onnx", "-o", "old.moec"],
    ["compile", "model.onnx", "-o", "new.zip"],
    ["verify", "model.onnx"],
    ["bench", "old.moec", "--inputs", "inputs.npz"],
    ["run", "old.moec", "--inputs", "inputs.npz", "--outputs", "new.npz"],
]


@pytest.mark.parametrize("module", ["typer", "moec.cli.ending", "moec.targets"])
def test_an_interruption_while_modules_are_imported_says_nothing(module):
    """SIGINT comes as soon as the command line imports that module."""
    program = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores the signal
class Interrupter:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
sys.argv = ["moec", "pipeline"]
from moec.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command))
@pytest.mark.parametrize("seconds", [1, 1.5, 2, 2.5, 3, 4])
def test_every_command_ends_at_once_wherever_it_is(folder, tmp_path, command, seconds):
    """tests/exporting/test_stopped.py ends commands while they write, in every run."""
    for name in ("model.onnx", "inputs.npz"):
        (tmp_path / name).symlink_to(folder / name)
    moec.load(folder / "model.moec").save(tmp_path / "old.moec")
    before = sorted(os.listdir(tmp_path))
    with subprocess.Popen(
        [*START, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        time.sleep(seconds)
        if process.poll() is not None:
            pytest.skip("it ended before it was interrupted")
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=20)
    open_artifact(tmp_path / "old.moec")
    if process.returncode in (0, -signal.SIGINT) and not said:
        pytest.skip("it was ending when it was interrupted")
    assert (process.returncode, printed, said) == (130, "", "")
    assert time.monotonic() - start < 10  # a second, where nothing else runs
    assert sorted(os.listdir(tmp_path)) == before
