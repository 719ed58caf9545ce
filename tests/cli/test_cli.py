"""The command line: printed results, exit codes, and one line on stderr for every error."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from moec.artifacts import loading
from moec.common.cores import available_cores
from moec.common.errors import DefectError, MoecError
from moec.ir.text import parse_model

from ..command import START, moec


def assert_refused(done, *words):
    """Assert exit code 2, nothing on stdout, and one line on stderr that contains the words."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Write a model: ids[n] int64 → rows of a table → one matrix product with softmax, for every n."""
    generator = np.random.default_rng(seed)
    table = generator.standard_normal((11, 8)).astype(np.float32)
    matrix = generator.standard_normal((8, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make model.onnx, other.onnx (the same with other weights), model.moec and in.npz."""
    folder = tmp_path_factory.mktemp("cli")
    onnx.save(mlp(), folder / "model.onnx")
    onnx.save(mlp(seed=1), folder / "other.onnx")
    np.savez(folder / "in.npz", ids=np.array([3, 0, 10]))
    done = moec("compile", folder / "model.onnx", "-o", folder / "model.moec", "-O1", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "model.moec: 0 MoE blocks" in done.stdout
    return folder


def test_help_is_quick():
    subprocess.run([*START, "--help"], capture_output=True)  # warm the file cache
    start = os.times()
    done = subprocess.run([*START, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "compile" in done.stdout
    end = os.times()
    spent = end.children_user + end.children_system - start.children_user - start.children_system
    assert spent < 0.7  # seconds of the processor; 0.25 s where nothing else runs


def test_help_imports_nothing_heavy():
    heavy = ("numpy", "onnx", "onnx_ir", "tvm", "torch", "onnxruntime")
    program = f"import sys, moec.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_version():
    assert moec("--version").stdout == "moec 0.1.0\n"


def test_pipeline_prints_what_passes_takes():
    assert moec("pipeline", "-O2").stdout == moec("pipeline").stdout
    assert "raise-moe" not in moec("pipeline", "-O0").stdout
    assert "raise-moe" in moec("pipeline", "-O1").stdout


def test_run_writes_outputs(folder, tmp_path):
    done = moec("run", folder / "model.moec", "--inputs", folder / "in.npz", "--outputs", tmp_path / "out.npz")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    outputs = np.load(tmp_path / "out.npz")
    assert outputs["y"].shape == (3, 4)
    np.testing.assert_allclose(outputs["y"].sum(axis=1), 1, rtol=1e-5)


def test_verify_says_the_differences(folder):
    done = moec("verify", folder / "model.onnx", folder / "model.moec", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [case["inputs"]["ids"] for case in result["cases"]] == [[1], [3], [16], [300]]
    assert all(case["differences"][0]["absolute"] < 1e-5 for case in result["cases"])
    assert "match" in moec("verify", folder / "model.onnx", folder / "model.moec").stdout


def test_verify_compiles_first_without_an_artifact(folder):
    done = moec("verify", folder / "model.onnx", "--inputs", folder / "in.npz")
    assert done.returncode == 0, done.stderr
    assert "ids[3]" in done.stdout


def test_verify_exits_with_1_when_an_output_differs(folder):
    done = moec("verify", folder / "other.onnx", folder / "model.moec")
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout


def test_verify_says_when_onnxruntime_itself_fails(folder, tmp_path):
    np.savez(tmp_path / "in.npz", ids=np.array([11]))
    done = moec("verify", folder / "model.onnx", folder / "model.moec", "--inputs", tmp_path / "in.npz")
    assert done.returncode == 2
    assert "NOT RUN" in done.stdout
    assert done.stderr.startswith("error: onnxruntime itself cannot run the model on ids[1]: ")
    assert done.stderr.count("\n") == 1


def test_inspect_shows_blocks_kernels_weights_and_passes(folder):
    text = moec("inspect", folder / "model.moec").stdout
    for word in ("MoE blocks: none", "Kernels", "Weights", "raise-moe", "ids", "[n, 4]"):
        assert word in text
    data = json.loads(moec("inspect", folder / "model.moec", "--json").stdout)["artifacts"][0]
    assert data["threads"] == 1
    assert data["input_limits"] == {"ids": 11}
    kernel = next(kernel for kernel in data["kernels"] if kernel["op"] == "MatMul")
    assert sum(candidate["chosen"] for candidate in kernel["candidates"]) == 1


@pytest.mark.parametrize(("form", "word"), [("tir", "def "), ("llvm", "define "), ("asm", "ret")])
def test_inspect_shows_a_kernel(folder, form, word):
    data = json.loads(moec("inspect", folder / "model.moec", "--json").stdout)["artifacts"][0]
    name = next(kernel["name"] for kernel in data["kernels"] if kernel["op"] == "MatMul")
    done = moec("inspect", folder / "model.moec", "--kernel", name, "--emit", form)
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_an_artifact_is_no_model_to_compile(folder, tmp_path):
    done = moec("compile", folder / "model.moec", "-o", tmp_path / "again.moec")
    assert_refused(done, "model.moec: is an artifact, which is compiled already; give the model that it was made of")
    (tmp_path / "empty").mkdir()
    assert_refused(moec("compile", tmp_path / "empty", "-o", tmp_path / "again.moec"), "empty: has no config.json")


def test_opt_prints_ir_that_opt_reads(folder, tmp_path):
    done = moec("opt", folder / "model.onnx", "--passes", "infer-shapes", "--verify-each")
    assert done.returncode == 0, done.stderr
    assert "MatMul" in done.stdout
    (tmp_path / "model.onnxtxt").write_text(done.stdout)
    again = moec("opt", tmp_path / "model.onnxtxt", "--passes", "remove-dead-nodes")
    assert again.stdout == done.stdout, again.stderr
    assert_refused(moec("opt", tmp_path / "model.onnxtxt", "--passes", "infer-shapes"), "the text holds its hash")
    printed = moec("opt", folder / "model.onnx", "--passes", "infer-shapes", "--print-ir-after", "infer-shapes").stdout
    assert printed.startswith("# after infer-shapes")


def test_bench_times_both(folder):
    done = moec(
        *("bench", folder / "model.moec", "--against", "onnxruntime", "--model", folder / "model.onnx"),
        *("--inputs", folder / "in.npz", "--json"),
    )
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert set(case["milliseconds"]) == {"moec", "onnxruntime"}
    assert all(0 < times["min"] <= times["median"] for times in case["milliseconds"].values())
    assert case["kernels"]
    assert all(row["gb_per_s"] > 0 and row["share_of_roofline"] > 0 for row in case["kernels"])
    assert json.loads(done.stdout)["roofline"]["peaks"]


def test_doctor_knows_the_machine():
    done = moec("doctor", "--json")
    assert done.returncode == 0, done.stdout
    findings = json.loads(done.stdout)
    assert findings["cores"] == len(available_cores())
    assert findings["versions"]["apache-tvm"] == "0.27.0.post1"


def test_dump_phases(folder, tmp_path):
    done = moec("compile", folder / "model.onnx", "-o", tmp_path / "a.zip", "--dump-phases-to", tmp_path / "phases")
    assert done.returncode == 0, done.stderr
    assert "MatMul" in (tmp_path / "phases" / "00-import.onnxtxt").read_text()
    assert (tmp_path / "a.zip").is_file()
    parse_model((tmp_path / "phases" / "00-import.onnxtxt").read_text())  # a comment with its seal


# --- bad input -------------------------------------------------------------------------------------------------------


def test_usage_errors_exit_with_2():
    for arguments in (
        ["nonsense"],
        ["compile"],
        ["compile", "m.onnx", "-o", "a", "-O9"],
        ["run", "a", "--inputs", "b"],
    ):
        assert moec(*arguments).returncode == 2


def test_missing_model(tmp_path):
    assert_refused(moec("compile", tmp_path / "no.onnx", "-o", tmp_path / "a.moec"), "no.onnx: no such file")
    assert_refused(moec("opt", tmp_path / "no.onnx"), "no.onnx: no such file")
    assert_refused(moec("opt", tmp_path / "no.onnxtxt"), "no.onnxtxt: cannot be read: No such file")
    assert_refused(moec("verify", tmp_path / "no.onnx"), "no.onnx: no such file")
    assert list(tmp_path.iterdir()) == []


def test_truncated_model(folder, tmp_path):
    (tmp_path / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:150])
    assert_refused(moec("compile", tmp_path / "cut.onnx", "-o", tmp_path / "a.moec"), "cut.onnx")
    assert not (tmp_path / "a.moec").exists()


@pytest.mark.parametrize("graph", ["z = Relu (x) y = Reshape (z, sizes)", "z, y = Split <axis = 0> (x, sizes)"])
def test_what_passes_refuse_names_the_file_and_the_node(tmp_path, graph):
    """The input has a size of the exporter's example, instead of one that follows from another input."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[n,8] x) => (float[m,8] y) <int64[2] sizes = {{2, 8}}> {{ {graph} }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "frozen.onnx")
    for command in (
        ("compile", tmp_path / "frozen.onnx", "-o", tmp_path / "a.moec"),
        ("opt", tmp_path / "frozen.onnx"),
    ):
        assert_refused(moec(*command), f"error: {tmp_path / 'frozen.onnx'}: node '", "the exporter has frozen")


def test_unknown_target_pass_and_clashing_options(folder, tmp_path):
    model, output = folder / "model.onnx", tmp_path / "a.moec"
    assert_refused(moec("compile", model, "-o", output, "--target", "abacus"), "abacus")
    assert_refused(moec("compile", model, "-o", output, "--passes", "rise-moe"), "did you mean 'raise-moe'?")
    assert_refused(
        moec("compile", model, "-o", output, "-O1", "--passes", "raise-moe"), "give -O or --passes, not both"
    )
    assert_refused(moec("opt", model, "--print-ir-after", "nothing"), "cannot print after 'nothing'")
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "precious").write_text("data")
    assert_refused(moec("compile", folder / "model.onnx", "-o", tmp_path / "precious"), "moec did not write")
    done = moec("run", folder / "model.moec", "--inputs", folder / "in.npz", "--outputs", tmp_path / "no" / "o.npz")
    assert_refused(done, "o.npz: the folder ", "does not exist; create it first")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_output_that_cannot_be_written_is_refused_before_compiling(folder, tmp_path):
    (tmp_path / "file").write_text("data")
    dump = ("--dump-phases-to", tmp_path / "phases")
    done = moec("compile", folder / "model.onnx", "-o", tmp_path / "file" / "a.moec", *dump)
    assert_refused(done, "does not exist; create it first")
    done = moec("compile", folder / "model.onnx", "-o", tmp_path / "file", *dump)
    assert_refused(done, "is a file that moec did not write, not an artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_outputs_and_phases_replace_only_what_moec_wrote(folder, tmp_path):
    run = ("run", folder / "model.moec", "--inputs", tmp_path / "in.npz", "--outputs")
    np.savez(tmp_path / "in.npz", ids=np.array([3, 0, 10]))
    assert_refused(moec(*run, tmp_path / "in.npz"), "in.npz: is a file that moec did not write; remove it or choose")
    for _ in range(2):
        assert moec(*run, tmp_path / "out.npz").returncode == 0
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 4)
    phases = tmp_path / "phases"
    phases.mkdir()
    (phases / "00-import.onnxtxt").write_text("my notes")
    done = moec("compile", folder / "model.onnx", "-o", tmp_path / "a.moec", "--dump-phases-to", phases)
    assert_refused(done, "00-import.onnxtxt: is a file that moec did not write")
    assert (phases / "00-import.onnxtxt").read_text() == "my notes"
    assert not (tmp_path / "a.moec").exists()


def test_wrong_inputs(folder, tmp_path):
    def run_with(**arrays):
        np.savez(tmp_path / "in.npz", **arrays)
        return moec("run", folder / "model.moec", "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz")

    assert_refused(run_with(idz=np.array([1])), "unknown input 'idz'; expected: ids int64[n]")
    assert_refused(run_with(ids=np.array([1], np.int32)), "input 'ids' has dtype int32; expected int64")
    assert_refused(run_with(ids=np.array([[1]])), "input 'ids' has rank 2")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("content", [None, b"", b"no zip", np.arange(3)])
def test_inputs_that_are_no_archive(folder, tmp_path, content):
    path = tmp_path / "in.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with path.open("wb") as file:
            np.save(file, content)
    assert_refused(moec("run", folder / "model.moec", "--inputs", path, "--outputs", tmp_path / "o.npz"), "in.npz")


def test_inputs_are_never_unpickled(folder, tmp_path):
    np.savez(tmp_path / "in.npz", ids=np.array([print], dtype=object))
    done = moec("run", folder / "model.moec", "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "o.npz")
    assert_refused(done, "the array 'ids' is of the type")


@pytest.mark.parametrize("verb", ["run", "inspect", "bench"])
def test_missing_or_wrong_artifact(tmp_path, verb):
    extra = ["--inputs", "i.npz", "--outputs", "o.npz"] if verb == "run" else []
    assert_refused(moec(verb, tmp_path / "absent.moec", *extra), "absent.moec: no such artifact")
    assert_refused(moec(verb, tmp_path, *extra), "is not a moec artifact")


def test_bench_needs_the_model_and_a_known_contestant(folder):
    assert_refused(moec("bench", folder / "model.moec", "--against", "onnxruntime"), "add --model MODEL")
    assert_refused(moec("bench", folder / "model.moec", "--against", "abacus"), "known: onnxruntime")


def test_a_program_is_nothing_to_simulate(folder):
    assert_refused(moec("simulate", folder / "model.moec"), "is compiled for cpu", "use moec run")


def test_a_form_without_a_kernel_is_refused(folder):
    assert_refused(moec("inspect", folder / "model.moec", "--emit", "asm"), "add --kernel K")


def test_unknown_kernel(folder):
    assert_refused(moec("inspect", folder / "model.moec", "--kernel", "nothing"), "has no kernel 'nothing'")


def test_an_expert_of_a_layer_that_is_not_there(folder):
    assert_refused(moec("inspect", folder / "model.moec", "--expert", "0:0"), "no layer '0'; there are none")
    both = ("--expert", "0:0", "--kernel", "nothing")
    assert_refused(
        moec("inspect", folder / "model.moec", *both), "give one of --expert, --kernel, --launches and --ranks"
    )


# --- defects and interruptions ---------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Have commands fail with an error where they load an artifact; returns what such a command prints."""

    def fail_with(error: Exception) -> subprocess.CompletedProcess[str]:
        def fail(*_arguments, **_options):
            raise error

        monkeypatch.setattr(loading, "load", fail)
        return moec("bench", "model.moec")

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MoecError("wrong"), 2, "error: wrong"),
        (DefectError("odd"), 3, "error: odd"),
        (KeyError("x"), 3, "error: moec: KeyError: 'x'; this is a defect of moec: report it with the model and"),
    ],
    ids=repr,
)
def test_exit_codes(failing, error, code, line):
    done = failing(error)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_an_interrupted_process_ends_with_130_and_says_nothing():
    program = (
        "from moec.cli import main as cli; from moec.artifacts import loading\n"
        "def fail(*_arguments, **_options): raise KeyboardInterrupt\n"
        "loading.load = fail; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, "bench", "model.moec"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_traceback_is_shown_to_those_who_ask(failing, monkeypatch):
    monkeypatch.setenv("MOEC_TRACEBACK", "1")
    done = failing(KeyError("x"))
    assert done.returncode == 3
    assert "in fail" in done.stderr and done.stderr.splitlines()[-1].startswith("error: moec: KeyError: 'x'")
