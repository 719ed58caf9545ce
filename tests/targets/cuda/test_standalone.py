"""The standalone program of a kernel, compiled by g++ for the emulator: it detects whether results agree with the file
of numbers."""

from __future__ import annotations

import re
import subprocess

import onnx
import pytest

import moec
from moec.common.errors import MoecError
from moec.runtime.artifact import open_artifact
from moec.simulators.cuda.standalone import build_standalone
from moec.targets.cuda import nvcc
from moec.targets.cuda.standalone import program_text
from moec.tools.kernel_calls import catch_call
from moec.tools.standalone import write_standalone

TEXT = '<ir_version: 10, opset_import: ["" : 21]> g (float[n,40] x) => (float[n,40] y) { y = Softmax (x) }'


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("standalone") / "art"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        moec.compile(onnx.parser.parse_model(TEXT), target="cuda", output=path, emulate=True)
    return open_artifact(path)


def test_agrees_with_its_numbers_and_notices_others(artifact, tmp_path):
    (kernel,) = (kernel["name"] for kernel in artifact.program().kernels)
    write_standalone(artifact, kernel, tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [f"{kernel}.cu", f"{kernel}.numbers"]
    program, numbers = tmp_path / kernel, tmp_path / "made" / f"{kernel}.numbers"
    build_standalone(tmp_path / "made" / f"{kernel}.cu", program)
    saved = numbers.read_bytes()
    saved = saved[: saved.rindex(b"\n// sealed by moec ")]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([program], cwd=numbers.parent, capture_output=True, text=True)

    right = run()
    assert right.returncode == 0, right
    assert right.stdout.count("largest difference") == 2 and "DIFFERS" not in right.stdout
    numbers.write_bytes(saved[:-4] + b"\0\0\x80\x3f")  # the last result becomes 1
    wrong = run()
    assert wrong.returncode == 1 and "DIFFERS" in wrong.stdout
    numbers.write_bytes(saved[:-1])
    cut = run()
    assert cut.returncode == 2 and "ends too early" in cut.stderr


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_compiles_it_as_its_head_says(artifact, tmp_path):
    (kernel,) = (kernel["name"] for kernel in artifact.program().kernels)
    source = program_text(artifact, kernel)
    (tmp_path / f"{kernel}.cu").write_text(source)
    command = re.search(r"^//     nvcc (.*) && ", source, re.MULTILINE)[1]
    subprocess.run([str(nvcc.find_tool("nvcc")), *command.split()], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / kernel).is_file()


def test_nothing_is_written_where_it_cannot_be(artifact, tmp_path):
    (tmp_path / "file").write_text("precious")
    (kernel,) = (kernel["name"] for kernel in artifact.program().kernels)
    with pytest.raises(MoecError, match="file: the program cannot be written"):
        write_standalone(artifact, kernel, tmp_path / "file")
    with pytest.raises(MoecError, match="has no kernel 'absent'"):
        write_standalone(artifact, "absent", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_its_own_files_are_replaced(artifact, tmp_path):
    (kernel,) = (kernel["name"] for kernel in artifact.program().kernels)
    write_standalone(artifact, kernel, tmp_path)
    (tmp_path / "notes").write_text("data")
    write_standalone(artifact, kernel, tmp_path)
    program = tmp_path / f"{kernel}.cu"
    program.write_text(program.read_text() + "// my own experiment\n")
    changed = [(path, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(MoecError, match=rf"{kernel}\.cu: is a file that moec did not write; remove it or choose"):
        write_standalone(artifact, kernel, tmp_path)
    assert [(path, path.read_bytes()) for path in sorted(tmp_path.iterdir())] == changed


@pytest.mark.parametrize("name", ["../softmax", "/tmp/softmax"])
def test_a_kernel_whose_name_leaves_the_folder_is_refused(artifact, tmp_path, name):
    other = open_artifact(artifact.folder)
    other.program().kernels[0]["name"] = name
    with pytest.raises(MoecError, match="cannot be the name of a file"):
        write_standalone(other, name, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_kernel_that_computes_nothing_gives_no_numbers(artifact):
    with pytest.raises(MoecError, match="kernel 'absent' computes nothing on random inputs with dynamic sizes of 5, 7"):
        catch_call(artifact, "absent", [], None, least=5)


def test_a_launch_with_something_else_is_refused(artifact):
    (record,) = artifact.program().kernels
    launch = record["launches"][0]
    changed = {**record, "launches": [{**launch, "arguments": ["workspace_ptr"]}]}
    other = open_artifact(artifact.folder)
    other.program().kernels[0] = changed
    with pytest.raises(MoecError, match="is launched with 'workspace_ptr'; expected only its tensors and sizes"):
        program_text(other, record["name"])


def test_the_text_says_how_many_blocks_a_cluster_has(artifact):
    (record,) = artifact.program().kernels
    function = record["launches"][0]["function"]
    assert "__cluster_dims__" not in program_text(artifact, record["name"])
    other = open_artifact(artifact.folder)
    other.program().kernels[0] = {**record, "launches": [{**record["launches"][0], "cluster": 2}]}
    assert f" __cluster_dims__(2, 1, 1) {function}(" in program_text(other, record["name"])


def test_a_kernel_for_the_processor_has_no_program(tmp_path):
    moec.compile(onnx.parser.parse_model(TEXT), output=tmp_path / "art")
    artifact = open_artifact(tmp_path / "art")
    with pytest.raises(MoecError, match="is not for a GPU; choose an artifact for --target cuda"):
        program_text(artifact, artifact.program().kernels[0]["name"])
