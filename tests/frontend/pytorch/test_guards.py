"""Assumptions of torch.export are checked when the model is called, reported, or refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import InputError, MoecError, UnsupportedError
from moec.common.specs import TensorSpec
from moec.frontend.onnx.conditions import KEY, Conditions, conditions_of, settled
from moec.frontend.pytorch.text_inputs import wide_guards
from moec.passes.framework.base import Report

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

AUTO, DYNAMIC, Dim = torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC, torch.export.Dim
X = torch.ones(2, 8, 4)


class Function(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self.function(*arguments)


def chunks(x: torch.Tensor) -> torch.Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length // 4, 4, width).cumsum(2).reshape(batch, length, width)


def conditions(function: Callable[..., torch.Tensor], arguments: tuple[Any, ...], *dims: Any) -> Conditions:
    from moec.frontend.pytorch import importer as pytorch

    return conditions_of(pytorch.import_module(Function(function).eval(), arguments, (dims,)))


def compiled(function: Callable[..., torch.Tensor], arguments: tuple[Any, ...], *dims: Any) -> moec.CompiledModel:
    return moec.compile(Function(function).eval(), arguments, dynamic_shapes=(dims,), passes="O0")


def test_a_multiple_of_a_size_that_differs_from_one_number_is_a_size_that_does() -> None:
    result = conditions(lambda x: x * 2 if 8 * x.shape[1] != 8 else x * 3, (X,), {1: DYNAMIC})
    (guard,) = result.guards
    assert guard.endswith(" != 1") and guard.removesuffix(" != 1").isidentifier()


def test_a_branch_on_a_size_is_checked() -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] <= 16 else x * 3

    model = compiled(branch, (X,), {1: DYNAMIC})
    (guard,) = model.guards
    name = model.inputs[0].shape[1]
    assert guard == f"{name} <= 16" and model.describe()["guards"] == [guard]
    assert ("warning", guard) in [(remark["severity"], remark["subject"]) for remark in model.remarks]
    for length in (0, 1, 16):
        np.testing.assert_array_equal(
            model(np.ones((2, length, 4), np.float32))["output"], np.full((2, length, 4), 2.0)
        )
    with pytest.raises(
        InputError, match=rf"for sizes with {guard} only.*{name} = 17 \(axis 1 of input 'arguments_0'\)"
    ):
        model(np.ones((2, 17, 4), np.float32))


def test_a_range_survives_in_a_file(tmp_path) -> None:
    """Conditions that are no ranges are lost: nothing in the file says that a length has to be even."""
    branch = Function(lambda x: x * 2 if x.shape[1] <= 16 and x.shape[1] % 2 == 0 else x * 3).eval()
    program = torch.onnx.export(
        branch, (X,), dynamic_shapes=(({0: "batch", 1: "length"},),), dynamo=True, verbose=False
    )
    program.save(tmp_path / "model.onnx")
    model = moec.compile(tmp_path / "model.onnx", passes="O0")
    assert model.guards == ["length <= 16"]
    (result,) = model(X[:, :6].contiguous()).values()
    np.testing.assert_array_equal(result, X[:, :6] * 2)


def test_without_a_branch_there_is_no_guard() -> None:
    assert conditions(lambda x: x * 2, (X,), {0: DYNAMIC, 1: DYNAMIC}) == Conditions()


def test_chunks_are_checked() -> None:
    model = compiled(chunks, (X,), {0: DYNAMIC, 1: DYNAMIC})
    assert model.guards == [f"{model.inputs[0].shape[1]} % 4 == 0"]
    x = np.random.default_rng(0).standard_normal((3, 12, 4)).astype(np.float32)
    np.testing.assert_allclose(model(x)["output"], chunks(torch.from_numpy(x)).numpy(), rtol=1e-6)
    with pytest.raises(InputError, match="= 13"):
        model(np.ones((3, 13, 4), np.float32))


def test_a_size_that_is_a_multiple_by_its_name_is_checked() -> None:
    model = compiled(lambda x: x * 2, (X,), {1: 4 * Dim("count")})
    np.testing.assert_array_equal(model(np.ones((2, 12, 4), np.float32))["output"], np.full((2, 12, 4), 2.0))
    with pytest.raises(InputError, match=r"has size 13 on axis 1; expected 4\*\w+ for a whole number"):
        model(np.ones((2, 13, 4), np.float32))


@pytest.mark.parametrize(
    ("function", "dims", "expected"),
    [
        (lambda x: x * 2, Dim("s", min=3, max=12), ["3 <= {} <= 12"]),
        (lambda x: x * 2 if x.shape[1] != 5 else x, DYNAMIC, ["{} != 5"]),
        (lambda x: x * 2 if x.shape[1] != 1 else x, DYNAMIC, ["{} != 1"]),
        (lambda x: x * 2 if x.shape[1] > 1 else x, DYNAMIC, ["{} != 1"]),
    ],
)
def test_what_is_said_of_one_size(function: Any, dims: Any, expected: list[str]) -> None:
    from moec.frontend.pytorch import importer as pytorch

    model = pytorch.import_module(Function(function).eval(), (X,), (({1: dims},),))
    shape = model.graph.inputs[0].shape
    assert shape is not None
    assert list(conditions_of(model).guards) == [text.format(shape[1]) for text in expected]


def test_relations_between_sizes() -> None:
    x, y = torch.ones(3, 4), torch.ones(5, 4)
    actual = conditions(lambda x, y: x * 2 if x.shape[0] < y.shape[0] else x, (x, y), {0: DYNAMIC}, {0: DYNAMIC})
    assert any(" < " in guard for guard in actual.guards)
    model = compiled(lambda x, y: x + y[:-2], (x, y), {0: AUTO}, {0: AUTO})
    assert model(np.ones((1, 4), np.float32), np.ones((3, 4), np.float32))["output"].shape == (1, 4)
    with pytest.raises(InputError, match=r"has size 4 on axis 0; expected \w+ \+ 2 where \w+ = 3"):
        model(np.ones((3, 4), np.float32), np.ones((4, 4), np.float32))


def test_sizes_of_one_name_must_be_equal() -> None:
    model = compiled(lambda x, y: x + y, (X, X), {1: AUTO}, {1: AUTO})
    with pytest.raises(InputError, match=r"'arguments_1' has size 3 on axis 1 \(\w+\); expected 4"):
        model(np.ones((2, 4, 4), np.float32), np.ones((2, 3, 4), np.float32))


def test_one_token_is_let_in_where_the_module_agrees() -> None:
    """The branch has no effect: the sum over one token is that token."""
    actual = conditions(lambda x: x.sum(1) if x.shape[1] != 1 else x[:, 0], (X,), {1: DYNAMIC})
    assert actual.guards == () and len(actual.tried) == 1 and actual.tried[0].endswith(" = 1")


def test_a_single_token_is_let_in_where_the_module_agrees() -> None:
    """The guard is about two sizes; it stays where it also excludes other sizes."""

    def doubled(x: torch.Tensor, is_other: bool) -> torch.Tensor:
        return x * 2 if is_other else x + x

    for function, kept in (
        (lambda x: doubled(x, x.shape[0] * x.shape[1] != 1), 0),
        (lambda x: doubled(x, x.shape[0] + x.shape[1] > 2), 1),
    ):
        actual = conditions(function, (X,), {0: DYNAMIC, 1: DYNAMIC})
        assert len(actual.guards) == kept
        assert all(re.search(r" or \(\w+ == 1 and \w+ == 1\)", guard) for guard in actual.guards)
        assert actual.tried[-1].count(" = 1") == 2


def test_trials_do_not_rest_on_examples_of_zeros() -> None:
    actual = conditions(lambda x: x * 2 if x.shape[1] != 1 else x * 3, (torch.zeros(2, 8),), {1: DYNAMIC})
    assert len(actual.guards) == 1 and not actual.tried
    ids = torch.zeros(2, 8, dtype=torch.int64)
    actual = conditions(lambda x: x * 2 if x.shape[1] != 1 else x * 3, (ids,), {1: DYNAMIC})
    assert len(actual.guards) == 1 and not actual.tried


def test_a_size_that_the_module_fixes_is_said() -> None:
    actual = conditions(lambda x: x + torch.arange(8)[None, :, None], (X,), {1: AUTO})
    assert actual == Conditions(fixed=("axis 1 of 'arguments_0' is 8",))


def test_conditions_on_values_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Function: PyTorch exported it for arguments_1 <= 16 only"):
        conditions(lambda x, n: x * 2 if n <= 16 else x * 3, (X, 7), {}, DYNAMIC)


@pytest.mark.nightly
def test_assertions_about_values_are_said() -> None:
    def first(x: torch.Tensor) -> torch.Tensor:
        count = (x > 0).sum().item()
        torch._check(count <= 5)
        return x[:count] * 2

    actual = conditions(first, (torch.ones(4),), {})
    assert "u0 <= 5" in actual.unchecked
    assert conditions(lambda x: x.nonzero(), (torch.ones(4),), {0: DYNAMIC}) == Conditions()


def model_with(metadata: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> agraph (float[s, "2*t"] x) => (float[s, "2*t"] y) { y = Neg (x) }'
    )
    model.metadata_props.add(key=KEY, value=metadata)
    return model


def test_conditions_survive_in_an_onnx_file(tmp_path) -> None:
    written = moec.import_model(model_with(_json(guards=["s <= 3", "t != 2"])))
    assert conditions_of(written).guards == ("s <= 3", "t != 2")
    onnx.save(model_with(_json(guards=["t != 2"])), tmp_path / "model.onnx")
    model = moec.compile(tmp_path / "model.onnx")
    assert model(np.ones((1, 6), np.float32))["y"].shape == (1, 6)
    with pytest.raises(InputError, match=r"t = 2 \(axis 1 of input 'x'\)"):
        model(np.ones((1, 4), np.float32))


def _json(**kinds: Any) -> str:
    import json

    return json.dumps(dataclasses.asdict(Conditions()) | kinds)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("nonsense", "is not JSON"),
        ("[]", "is a list of 0; expected an object"),
        ('{"more": []}', "has the unknown field 'more'"),
        ('{"guards": 3}', "guards is 3; expected a list"),
        (_json(guards=["s ** 2 > 1"]), "cannot be read"),
        (_json(unchecked=["\x1b[31m"]), r"unchecked\[0\] is .*; expected a printable text"),
        (_json(guards=["q > 1"]), "about 'q', no input's size"),
    ],
)
def test_metadata_that_nobody_vouches_for(tmp_path, metadata: str, message: str) -> None:
    onnx.save(model_with(metadata), tmp_path / "model.onnx")
    with pytest.raises(MoecError, match=rf"^{tmp_path}/model.onnx: .*{message}"):
        moec.compile(tmp_path / "model.onnx")


def test_guards_follow_sizes_that_become_numbers() -> None:
    before, after = TensorSpec("x", "float32", ("s", "t")), TensorSpec("x", "float32", ("s", 8))
    assert settled(["s <= t", "st > t"], [before], [after]) == ["s <= 8", "st > 8"]


@pytest.mark.parametrize(("longest", "severity"), [(64, "note"), (65, "warning")])
def test_a_bound_is_a_note_where_the_configuration_is_for_no_longer_inputs(longest: int, severity: str) -> None:
    module: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=longest))
    guards, report = ("1 <= length", "length <= 64"), Report()
    Conditions(guards, wide=tuple(wide_guards(module, guards))).report(
        [TensorSpec("ids", "int64", ("length",))], report
    )
    assert max(remark.severity for remark in report.remarks) == severity
