"""Compiled models as operators of PyTorch: eager, exported, compiled again."""

from __future__ import annotations

import gc
import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import InputError, MoecError

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
    g (float[N,4] x, float[N,4] z) => (float[N,4] sum, float[M,4] both)
    { sum = Add (x, z)  both = Concat <axis = 0> (x, z) }"""
"""Model whose second result has twice as many rows."""


def compiled(text: str) -> moec.CompiledModel:
    return moec.compile(onnx.parser.parse_model(text), threads=1)


@pytest.fixture(scope="module")
def module() -> Any:
    return moec.torch.as_module(compiled(TEXT))


def inputs(N: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(N)
    return torch.randn(N, 4, generator=generator), torch.randn(N, 4, generator=generator)


def check(actual: dict[str, Any], x: Any, z: Any) -> None:
    assert torch.equal(actual["sum"], x + z)
    assert torch.equal(actual["both"], torch.cat([x, z]))


@pytest.mark.parametrize("N", [0, 1, 5])
def test_tensors_in_tensors_out(module: Any, N: int) -> None:
    x, z = inputs(N)
    check(module(x, z=z), x, z)


def test_arrays_and_a_mapping_are_taken_as_a_run_takes_them(module: Any) -> None:
    x, z = inputs(4)
    check(module({"z": z, "x": x.numpy()}), x, z)
    turned, fixed = np.asfortranarray(x.numpy())[::-1], z.numpy().copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(module(turned, fixed), x.flip(0), z)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.0] * 4], "input 'z' is a list; expected a numpy array or a torch tensor"),
        (np.zeros((1, 4)), "input 'z' has dtype float64; expected float32: convert it with .astype"),
        (np.array([["a"] * 4]), "input 'z' has dtype <U1; expected one of bool, "),
        (np.zeros((1, 5), np.float32), "input 'z' has size 5 on axis 1; expected 4"),
    ],
)
def test_what_no_run_takes_is_refused(module: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(torch.zeros(1, 4), z=value)


STATEFUL = """<ir_version: 10, opset_import: ["" : 24]>
    g (int64[B,S] ids, float[B,P,2] kept) => (float[B,1,2] logits, float[B,R,2] grown)
    <float[3,2] table = {1,2,3,4,5,6}, int64[1] one = {1}>
    { new = Gather (table, ids)  grown = Concat <axis = 1> (kept, new)  logits = ReduceSum (grown, one) }"""


def test_states_may_be_left_out_as_in_a_run() -> None:
    module = moec.torch.as_module(compiled(STATEFUL))
    ids = torch.tensor([[0, 2], [1, 1]])
    first = module(ids)
    assert first["logits"].tolist() == [[[6, 8]], [[6, 8]]] and first["grown"].shape == (2, 2, 2)
    later = module(ids[:, :1], first["grown"])
    assert later["logits"].tolist() == [[[7, 10]], [[9, 12]]]
    with pytest.raises(InputError, match="inputs are kept; expected ids, kept, or all of these but the states"):
        module(kept=first["grown"])
    torch.library.opcheck(torch.ops.moec.run.default, ([ids], module.model.digest))
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(module, (ids,), dynamic_shapes=(({0: dynamic, 1: dynamic},),)).module()
    assert program(torch.tensor([[2, 1, 0]]))["logits"].tolist() == [[[9, 12]]]


def test_views_are_read_as_what_they_show(module: Any) -> None:
    x, z = inputs(5)
    negated = torch.view_as_complex(torch.randn(5, 4, 2)).conj().imag
    assert negated.is_neg()
    check(module(negated, z.t().contiguous().t()), negated, z)
    check(
        module(torch.cat([z, x]).flatten()[3:23].view(5, 4), x[:1].expand(5, 4)),
        torch.cat([z, x]).flatten()[3:23].view(5, 4),
        x[:1].expand(5, 4),
    )


def test_contiguous_inputs_are_not_copied() -> None:
    """The runtime gets the input's address, so that it reads in place."""
    module = moec.torch.as_module(compiled(TEXT.replace("Add", "Mul")))  # equal models are one to the operator
    seen: list[int] = []
    run = module.model._executor._program

    def watched(tensors: Any, weights: Any) -> Any:
        seen.extend(tensor.data_ptr() for tensor in tensors)
        return run(tensors, weights)

    module.model._executor._program = watched
    x, z = inputs(5)
    module(x, z)
    assert seen == [x.data_ptr(), z.data_ptr()]


def test_results_of_16_bits_keep_their_type() -> None:
    text = '<ir_version: 10, opset_import: ["" : 24]> g (bfloat16[N] x) => (bfloat16[N] y) { y = Add (x, x) }'
    x = torch.arange(5, dtype=torch.bfloat16)
    (y,) = moec.torch.as_module(compiled(text))(x).values()
    assert torch.equal(y, x + x)


def test_an_exported_program_runs_for_all_sizes(module: Any) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    wrapped = Doubled(module)
    program = torch.export.export(wrapped, inputs(3), dynamic_shapes=({0: dynamic}, {0: dynamic}))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for N in (2, 3, 9):
        x, z = inputs(N)
        check(loaded(x, z), 2 * x, z)


class Doubled(torch.nn.Module):
    """The module between other operators."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Any, z: Any) -> dict[str, Any]:
        return self.inner(2 * x, z)


def test_torch_compile_keeps_it_in_one_graph(module: Any) -> None:
    torch._dynamo.reset()
    again = torch.compile(Doubled(module), backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for N in (2, 3, 9):
            x, z = inputs(N)
            check(again(x, z), 2 * x, z)


def test_pytorch_finds_no_fault_with_the_operator(module: Any) -> None:
    torch.library.opcheck(torch.ops.moec.run.default, (list(inputs(3)), module.model.digest))


def test_gradients_are_refused(module: Any) -> None:
    x, z = inputs(3)
    x.requires_grad_()
    with pytest.raises(InputError, match=r"^gradients are wanted, and a compiled model computes inference only: "):
        module(x, z)
    with torch.no_grad():
        check(module(x, z), x, z)
    with torch.inference_mode():
        check(module(*inputs(4)), *inputs(4))


def test_a_model_that_is_gone_is_missed() -> None:
    module = moec.torch.as_module(compiled(TEXT.replace("Add", "Sub")))
    digest = module.model.digest
    del module
    gc.collect()
    with pytest.raises(MoecError, match=rf"^the compiled model {digest[:12]} that this program calls is not loaded: "):
        torch.ops.moec.run(list(inputs(3)), digest)


def test_another_copy_of_the_artifact_is_the_same_model(module: Any, tmp_path: Any) -> None:
    module.model.save(tmp_path / "copy.moec")
    copy = moec.torch.as_module(moec.load(tmp_path / "copy.moec"))
    assert copy.model.digest == module.model.digest


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        (1, {}, "inputs are x; expected x, z"),
        (2, {"x": 0}, "input 'x' is given both by position and by name"),
        (1, {"y": 0}, "inputs are x, y; expected x, z"),
        (2, {"y": 0}, "inputs are x, z, y; expected x, z"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused(module: Any, arguments: int, named: Any, message: str) -> None:
    values = inputs(3)
    with pytest.raises(InputError, match=message):
        module(*values[:arguments], **{name: values[position] for name, position in named.items()})


def test_a_wrong_type_is_refused_when_exporting(module: Any) -> None:
    x, z = inputs(3)
    with pytest.raises(Exception, match=r"input 'x' is torch.float64 of rank 2; expected x float32\[N,4\]"):
        torch.export.export(module, (x.double(), z))
