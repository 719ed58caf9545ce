"""Operands that are computed by the kernels that read them: fewer launches, the same bits."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from tvm import relax

import moec
from moec import targets
from moec.runtime.artifact import open_artifact
from moec.targets.base import KernelRecord
from moec.targets.cuda import nvcc, pipeline
from moec.targets.gpu.lowering.inline_producers import inline_producers

from .written_calls import Calls, kernels_after

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are not joined."""
    plain = pipeline.backend_for
    monkeypatch.setattr(pipeline, "backend_for", lambda *parts: dataclasses.replace(plain(*parts), join=None))
    yield


def kernels_of(
    body: str, inputs: str = "float[T,64] x, float[T,64] y", outputs: str = "float[T,64] z"
) -> list[KernelRecord]:
    head = f'<ir_version: 10, opset_import: ["" : 24]> g ({inputs}) => ({outputs})'
    text = f"{head} <float[64] scale = {{{SCALE}}}> {{{body}}}"
    return targets.get("cuda:sm_80").compile(ir.from_proto(onnx.parser.parse_model(text))).kernels


SCALE = ",".join(["1.5"] * 64)


def names(kernels: list[KernelRecord]) -> list[str]:
    return [kernel.name for kernel in kernels]


def test_a_sum_with_another_reader_is_stored_by_the_normalisation():
    first, second = kernels_of("s = Add (x, y) n = RMSNormalization (s, scale) z = Mul (s, n)")
    assert (first.name, second.name) == ("add_rms_norm", "mul")
    assert first.op == "Add + RMSNormalization" and len(first.nodes) == 2
    assert [parameter.name for parameter in first.parameters[2:]] == ["scale", "kept", "y"]
    assert len(first.launches) == 1


@pytest.mark.nightly
def test_a_sum_that_is_a_result_is_stored():
    body = "z = Add (x, y) n = LayerNormalization (z, scale, scale) "
    (kernel,) = kernels_of(body, outputs="float[T,64] z, float[T,64] n")
    assert kernel.name == "add_layer_norm"


def test_moved_elements_are_read_where_they_are():
    """A transposed operand is not stored: it has one reader, and no arithmetic."""
    inputs, outputs = "float[B,T,4,64] x", "float[B,4,T,64] z"
    (kernel,) = kernels_of("s = Transpose <perm = [0, 2, 1, 3]> (x) z = RMSNormalization (s, scale)", inputs, outputs)
    assert kernel.name == "transpose_rms_norm"
    assert [len(parameter.shape) for parameter in kernel.parameters] == [4, 1, 2]


@pytest.mark.nightly
def test_what_stays_apart():
    """A sum that is needed before its normalisation, a softmax, which does not store its operand, and sums along rows,
    which are no elements of their own. The two normalisations share a launch, in which each reads its operand."""
    body = """
        axis = Constant <value_int = 1> ()
        s = Add (x, y) u = Softmax (s) v = Mul (u, y) n = RMSNormalization (s, scale) z = Add (v, n)
        c = CumSum (x, axis) w = RMSNormalization (c, scale)
    """
    kernels = kernels_of(body, outputs="float[T,64] z, float[T,64] w")
    assert sorted(names(kernels)) == ["add", "cumulative", "mul_add", "norm_norm", "softmax"]
    (shared,) = [kernel for kernel in kernels if kernel.name == "norm_norm"]
    assert (shared.op, len(shared.parameters)) == ("RMSNormalization", 6)


def inlined(write: Callable[[Calls], list[relax.Var]]) -> list[str]:
    return kernels_after(lambda module: inline_producers(module).module, write)


def test_an_operand_of_two_normalisations_is_stored_by_the_first():
    def write(calls: Calls) -> list[relax.Var]:
        s = calls.add(calls.x, calls.y)
        return [calls.norm(s, calls.scale), calls.norm(s, calls.scale)]

    assert inlined(write) == ["add_norm", "norm"]


def test_a_sum_that_is_needed_before_its_normalisation_stays_apart():
    def write(calls: Calls, *, is_needed: bool) -> list[relax.Var]:
        s = calls.add(calls.x, calls.y)
        needed = [calls.first(calls.state), calls.add(s, calls.y)] if is_needed else [calls.first(calls.state)]
        return [*needed, calls.norm(s, calls.scale)]

    assert inlined(lambda calls: write(calls, is_needed=True)) == ["add", "first", "add", "norm"]
    assert inlined(lambda calls: write(calls, is_needed=False)) == ["first", "add_norm"]


def test_a_row_that_is_its_own_scale_stays_apart():
    def write(calls: Calls, scale: relax.Var | None = None) -> list[relax.Var]:
        s = calls.first(calls.state)
        row = calls.builder.emit(relax.op.reshape(s, [512])) if scale is None else scale
        return [calls.norm(s, row)]

    assert inlined(write) == ["first", "norm"]
    assert inlined(lambda calls: write(calls, calls.scale)) == ["first_norm"]


def test_a_kernel_that_computes_its_operand_is_stored_for_the_next_one():
    """Latent keys of attention are a slice, which is normalised and then appended."""

    def write(calls: Calls, row: relax.Var) -> list[relax.Var]:
        keys = calls.builder.emit(relax.op.reshape(calls.norm(row, calls.scale), [4, 2, 64]))
        return [calls.append(keys, calls.other)]

    assert inlined(lambda calls: write(calls, calls.first(calls.state))) == ["first_norm", "append"]
    assert inlined(lambda calls: write(calls, calls.x)) == ["norm", "append"]


@pytest.mark.parametrize("is_written", [False, True])
def test_memory_that_is_written_before_the_operand_is_read(is_written: bool):
    """The normalisation would read entries that an append has replaced."""

    def write(calls: Calls) -> list[relax.Var]:
        s = calls.first(calls.state)
        appended = [calls.append(calls.x, calls.state)] if is_written else []
        return [*appended, calls.norm(s, calls.scale)]

    assert inlined(write) == (["first", "append", "norm"] if is_written else ["first_norm"])


def test_memory_that_the_reader_writes():
    """A thread of the append would read entries that another has replaced."""
    assert inlined(lambda calls: [calls.append(calls.first(calls.state), calls.state)]) == ["first", "append"]
    assert inlined(lambda calls: [calls.append(calls.add(calls.x, calls.y), calls.state)]) == ["add_append"]


STATES = """<ir_version: 10, opset_import: ["" : 24]>
g (int64[B,S] ids, float[B,2,P,8] k, float[B,2,P,8] v)
    => (float[B,S,32] logits, float[B,2,R,8] pk, float[B,2,R,8] pv)
    <float[5,32] table = {TABLE}, float[32] scale = {SCALE}, float[1,1,1,8] turn = {TURN},
     int64[4] heads = {0, 0, 2, 8}, int64[4] all = {0, 0, 4, 8}> {
    e = Gather (table, ids)
    n = RMSNormalization (e, scale)
    narrow, others = Split <axis = -1, num_outputs = 2> (n)
    kr = Reshape (narrow, heads)
    vr = Reshape (others, heads)
    vt = Transpose <perm = [0, 2, 1, 3]> (vr)
    kt = Transpose <perm = [0, 2, 1, 3]> (kr)
    a, b = Split <axis = -1, num_outputs = 2> (kt)
    c = Neg (b)
    swapped = Concat <axis = -1> (c, a)
    left = Mul (kt, turn)
    right = Mul (swapped, turn)
    key = Add (left, right)
    qr = Reshape (n, all)
    q = Transpose <perm = [0, 2, 1, 3]> (qr)
    pk = Concat <axis = 2> (k, key)
    pv = Concat <axis = 2> (v, vt)
    y = Attention (q, pk, pv)
    yt = Transpose <perm = [0, 2, 1, 3]> (y)
    row = Shape (e)
    yr = Reshape (yt, row)
    s = Add (e, yr)
    m = RMSNormalization (s, scale)
    logits = Add (s, m)
}"""


def _numbers(*shape: int) -> str:
    return "{" + ",".join(f"{number:.3f}" for number in RANDOM.normal(size=shape).ravel()) + "}"


def _model() -> onnx.ModelProto:
    tensors = {"TABLE": (5, 32), "SCALE": (32,), "TURN": (8,)}
    text = STATES
    for name, shape in tensors.items():
        text = text.replace(f"{{{name}}}", _numbers(*shape))
    return onnx.parser.parse_model(text)


@pytest.mark.nightly
def test_keys_are_computed_as_they_are_appended(tmp_path: pathlib.Path, request: pytest.FixtureRequest):
    """Rotation, transposition and the state's own order of a key, and the same bits as with kernels of their own."""
    model, logits = _model(), []
    for name in ("joined", "apart"):
        if name == "apart":
            request.getfixturevalue("apart")
        path = tmp_path / name
        moec.compile(model, target="cuda:sm_80", output=path, emulate=True)
        called = [kernel["name"] for kernel in open_artifact(path).program().kernels]
        assert ("append" in called) == (name == "apart"), called
        assert any(each.endswith("add_rms_norm") for each in called) == (name == "joined")
        session = moec.load(path, emulate=True).session(batch=2)
        steps = np.array([[0, 1, 2, 3], [4, 3, 2, 1]])
        logits.append([session.run(steps), session.run(steps[:, :1]), session.run(steps[:, 1:2])])
    for first, second in zip(*logits, strict=True):
        assert first.tobytes() == second.tobytes()
