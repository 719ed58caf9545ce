"""Operators decomposed one by one: the program computes the same, and PyTorch traces again only where necessary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
from moec.frontend.pytorch.decompositions import decompose_one_by_one  # noqa: E402

aten = torch.ops.aten


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def decomposed(function: Callable[[Any], Any]) -> tuple[Any, bool]:
    """Decompose the program of a function of x [rows, 4]. Returns it and whether PyTorch traced it again; checks that
    both compute the same."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    module = Function(function).eval()
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
        before = str(program.graph)
        decompose_one_by_one(program)
        table = torch.export.default_decompositions()
        del table[aten.linear.default]
        actual = program.run_decompositions(table)
        torch.testing.assert_close(actual.module(check_guards=False)(x[:5]), module(x[:5]))
    assert str(program.graph) == before
    return actual, actual.verifier is not program.verifier  # only a program that was traced again has another dialect


def targets(program: Any) -> set[Any]:
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def own(x: Any) -> Any:
    values, _ = torch.topk(x, 2)
    values /= values.sum(-1, keepdim=True)
    return values.reshape(-1)


def view_of_its_own(x: Any) -> Any:
    built = (x @ torch.ones(4, 1)).squeeze(-1)
    built += 1
    return built


def chunks(x: Any) -> Any:
    left, right = x.to(torch.float64).chunk(2, dim=-1)
    return {"product": left * right, "same": x.to(torch.float32)}


@pytest.mark.parametrize(
    ("function", "created", "gone"),
    [
        (own, aten.div.Tensor, aten.div_.Tensor),
        (view_of_its_own, aten.add.Tensor, aten.add_.Tensor),
        (chunks, aten._to_copy.default, aten.to.dtype),
        (chunks, aten.split_with_sizes.default, aten.chunk.default),
        (lambda x: torch.nn.functional.linear(x, torch.ones(3, 4)), aten.linear.default, aten.addmm.default),
        (lambda x: torch.nn.functional.dropout(x, 0.5, False) + 1, aten.add.Tensor, aten.dropout.default),
    ],
)
def test_operators_are_decomposed_one_by_one(function: Callable[[Any], Any], created: Any, gone: Any) -> None:
    actual, is_traced = decomposed(function)
    assert not is_traced and created in targets(actual) and gone not in targets(actual)


def test_the_results_of_a_decomposed_operator_are_outputs() -> None:
    actual, is_traced = decomposed(lambda x: x.chunk(2, dim=-1))
    assert not is_traced and len(actual.graph_signature.user_outputs) == 2


def changed_after_a_view(x: Any) -> Any:
    built = x + 1
    view = built[1:]
    built.mul_(2)
    return view


def changed_through_a_view(x: Any) -> Any:
    built = x + 1
    built[1:].mul_(2)
    return built


def changed_to_a_wider_type(x: Any) -> Any:
    built = x + 1
    built.add_(torch.ones(4, dtype=torch.float64))
    return built


def in_a_body(x: Any) -> Any:
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


@pytest.mark.parametrize(
    "function",
    [changed_after_a_view, changed_through_a_view, changed_to_a_wider_type, in_a_body, lambda x: x[x > 0]],
    ids=["after a view", "through a view", "to a wider type", "in a body", "sizes of data"],
)
def test_what_has_to_be_seen_together_is_traced(function: Callable[[Any], Any]) -> None:
    _, is_traced = decomposed(function)
    assert is_traced
