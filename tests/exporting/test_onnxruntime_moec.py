"""Blocks as custom operators, which onnxruntime loads and runs."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import moec
from moec.common.errors import DefectError, MoecError
from moec.exporting.custom_ops import ops_library
from moec.exporting.onnx_model import MODEL
from moec.exporting.onnxruntime_moec import LIBRARY, NAME, WEIGHTS

from .. import command
from .conftest import D, E, F, K


def without_tools() -> str | None:
    try:
        ops_library.find_tools()
    except MoecError as error:
        return str(error)
    return None


needs_tools = pytest.mark.skipif(without_tools() is not None, reason=f"{without_tools()}")


@pytest.fixture(scope="module")
def block_path(tmp_path_factory) -> pathlib.Path:
    """Rows x [T,16] and logits [T,4] to y [T,16], by onnxruntime's own operator."""
    random = np.random.default_rng(0)
    weights = {"up": random.normal(size=(E, F, D)), "down": random.normal(size=(E, D, F))}
    node = helper.make_node(
        "MoE", ["x", "logits", "up", "", "down"], ["y"], domain="com.microsoft", k=K, activation_type="silu"
    )
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", size])
        for name, size in (("x", D), ("logits", E), ("y", D))
    }
    constants = [numpy_helper.from_array(array.astype(np.float32) / 4, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "block", [infos["x"], infos["logits"]], [infos["y"]], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def exported(block_path, tmp_path_factory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("exported") / "out"
    result = command.moec("export", block_path, "-o", output, "--for", NAME)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"{output}: for {NAME}, 1 moec\.ops\.MoE_[0-9a-f]{{12}}\n", result.stdout)
    return output


@pytest.fixture(scope="module")
def compiled(block_path) -> moec.CompiledModel:
    return moec.compile(block_path)


@needs_tools
def test_equal_layers_are_one_operator_with_weights_of_their_own(tmp_path):
    random, nodes, constants = np.random.default_rng(1), [], []
    for at in range(2):
        shapes = {f"up{at}": (E, F, D), f"down{at}": (E, D, F), f"router{at}": (D, E)}
        arrays = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
        constants += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        operands = [f"x{at}", f"logits{at}", f"up{at}", "", f"down{at}"]
        attributes = {"k": K, "activation_type": "silu", "domain": "com.microsoft"}
        nodes.append(helper.make_node("MatMul", [f"x{at}", f"router{at}"], [f"logits{at}"]))
        nodes.append(helper.make_node("MoE", operands, [f"x{at + 1}"], **attributes))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", D]) for name in ("x0", "x2")]
    graph = helper.make_graph(nodes, "layers", [ends[0]], [ends[1]], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    first, second = [part.written_as for part in moec.export(model, tmp_path / "out", form=NAME).parts]
    assert first == second
    assert len(list((tmp_path / "out" / WEIGHTS).iterdir())) == 2
    x = random.normal(size=(5, D)).astype(np.float32)
    actual = session_of(tmp_path / "out").run(["x2"], {"x0": x})[0]
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(["x2"], {"x0": x})[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def session_of(folder: pathlib.Path, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(folder / LIBRARY))
    return onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])


def inputs_of(tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    return {name: random.normal(size=(tokens, size)).astype(np.float32) for name, size in (("x", D), ("logits", E))}


def run(session: onnxruntime.InferenceSession, tokens: int) -> np.ndarray:
    return session.run(["y"], inputs_of(tokens))[0]


@needs_tools
def test_results_are_those_of_moec_for_every_number_of_threads(exported, compiled):
    for session in (session_of(exported, 1), session_of(exported, 3)):
        for tokens in (5, 1, 0, 200, 7):
            expected = compiled.run(inputs_of(tokens))["y"]
            actual = run(session, tokens)
            assert actual.shape == (tokens, D)
            np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@needs_tools
def test_the_weights_of_experts_are_stored_once(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {LIBRARY, "moec-files.txt", MODEL, f"{MODEL}.data", WEIGHTS}
    written = onnx.load(exported / MODEL)
    onnx.checker.check_model(written)
    assert [(node.op_type[:4], node.domain) for node in written.graph.node] == [("MoE_", "moec.ops")]
    assert (exported / MODEL).stat().st_size + (exported / f"{MODEL}.data").stat().st_size < 2000


@needs_tools
def test_threads_may_share_a_session_and_sessions_a_library(exported, compiled):
    sessions = [session_of(exported, 2), session_of(exported, 1)]
    expected = {tokens: compiled.run(inputs_of(tokens))["y"] for tokens in range(1, 9)}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = [(tokens, pool.submit(run, session, tokens)) for tokens in expected for session in sessions * 8]
        for tokens, future in runs:
            np.testing.assert_array_equal(future.result(), expected[tokens])


def memory() -> int:
    """Bytes of this process that are in memory."""
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@needs_tools
def test_sessions_leave_no_memory_behind(exported):
    def after_sessions(count: int) -> int:
        for _ in range(count):
            run(session_of(exported), 64)
        return memory()

    before = after_sessions(10)
    assert after_sessions(100) - before < 100 * 20_000  # one node takes more


@needs_tools
def test_nodes_that_run_in_turn_share_their_memory(exported):
    tokens, sessions = 4000, [session_of(exported) for _ in range(20)]
    for _ in range(2):  # a first run only tells how much it needs
        run(sessions[0], tokens)
    before = memory()
    for session in sessions[1:] * 2:
        run(session, tokens)
    assert memory() - before < 19 * tokens * K * (D + F) * 4 / 2


@needs_tools
def test_a_run_that_was_ended_does_not_harm_the_next(exported, compiled):
    session, options = session_of(exported), onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(Exception, match="terminate"):
        session.run(["y"], inputs_of(3), options)
    np.testing.assert_array_equal(run(session, 3), compiled.run(inputs_of(3))["y"])


@needs_tools
def test_inputs_of_different_lengths_are_refused(exported):
    session = session_of(exported)
    inputs = inputs_of(3) | {"logits": inputs_of(4)["logits"]}
    with pytest.raises(Exception, match=r"has size 4 on axis 0 \(tokens\); expected 3"):
        session.run(["y"], inputs)
    assert run(session, 3).shape == (3, D)


def damaged(exported: pathlib.Path, folder: pathlib.Path, how: str) -> None:
    """Copy an export and damage the copy."""
    shutil.copytree(exported, folder)
    (weights,) = (folder / WEIGHTS).iterdir()
    content = weights.read_bytes()
    if how == "missing":
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(content[:-1])
    elif how == "others":
        weights.write_bytes(bytes(len(content)))
    else:
        model = onnx.load(folder / MODEL)
        (attribute,) = (named for named in model.graph.node[0].attribute if named.name == "weights")
        attribute.s = how.encode()
        onnx.save(model, folder / MODEL)


@needs_tools
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("missing", "weights/[0-9a-f]{64}.bin: cannot be opened: No such file"),
        ("cut", r"has \d+ bytes; expected the \d+ of the weights of MoE_"),
        ("others", "has the weights of another model than MoE_"),
        ("../../secret", "the attribute 'weights' has not 64 hexadecimal digits"),
        ("0" * 63 + "/", "the attribute 'weights' has not 64 hexadecimal digits"),
        ("0" * 100, "the attribute 'weights' has not 64 hexadecimal digits"),
    ],
)
def test_a_session_does_not_begin_with_other_weights(exported, tmp_path, how, expected):
    damaged(exported, tmp_path / "copy", how)
    with pytest.raises(Exception, match=expected):
        session_of(tmp_path / "copy")


@needs_tools
def test_without_the_library_onnxruntime_says_which_operator_is_missing(exported):
    with pytest.raises(Exception, match=r"moec\.ops"):
        onnxruntime.InferenceSession(exported / MODEL, providers=["CPUExecutionProvider"])


@needs_tools
def test_a_model_without_blocks_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", D])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(MoecError, match="it has no MoE block; export it --for onnxruntime"):
        moec.export(model, tmp_path / "out", form=NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_header_is_named(monkeypatch, block_path, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is on PATH")
    monkeypatch.setattr(ops_library, "_HEADER_FOLDERS", ())
    monkeypatch.delenv("CPATH", raising=False)
    with pytest.raises(MoecError, match="apt-get install libonnxruntime-dev"):
        moec.export(block_path, tmp_path / "out", form=NAME)


def test_a_missing_compiler_is_named(monkeypatch, block_path, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MoecError, match="apt-get install gcc"):
        moec.export(block_path, tmp_path / "out", form=NAME)


def test_a_compiler_that_fails_or_cannot_be_started_is_an_error_of_the_user(tmp_path, monkeypatch):
    program = tmp_path / "cc"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *-E*|--version) exit 0;; esac\necho "a.c: error: no room" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    with pytest.raises(MoecError, match=r"the C library cannot be built: .*: a\.c: error: no room") as caught:
        ops_library.ops_library(ops_library.find_tools(), [])
    assert not isinstance(caught.value, DefectError)
    monkeypatch.setenv("CC", "/no/cc")
    with pytest.raises(MoecError, match="/no/cc: No such file"):
        ops_library.find_tools()
