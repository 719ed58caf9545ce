"""Products with placeholders equal those with ordinary matrices."""

from __future__ import annotations

from typing import Any

import pytest

from moec.frontend.huggingface.placeholders import placeholder, products_without_memory

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')


def made(*shape: int, seed: int = 0) -> Any:
    return placeholder(torch.Size(shape), torch.float32, torch.Generator().manual_seed(seed))


def check(function: Any, *weights: Any) -> None:
    with products_without_memory():
        actual = function(*weights)
    torch.testing.assert_close(actual, function(*(weight.contiguous() for weight in weights)))


def test_a_linear_layer() -> None:
    x = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1))
    check(lambda weight: torch.nn.functional.linear(x, weight), made(13, 9))
    check(lambda weight, bias: torch.nn.functional.linear(x, weight, bias), made(13, 9), made(13))
    check(lambda weight: x[0] @ weight, made(9, 4))
    check(lambda weight: x[0, :0] @ weight, made(9, 4))


def test_matrices_on_the_left() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    check(lambda weight: weight @ x, made(13, 9))
    check(lambda weight: weight.mT @ x, made(9, 13))


@pytest.mark.parametrize("count", [0, 1, 6])
def test_matrices_picked_from_a_stack(count: int) -> None:
    ids = torch.arange(count) * 5 % 3
    x = torch.randn(count, 9, 1, generator=torch.Generator().manual_seed(1))
    check(lambda stack: torch.bmm(stack[ids], x), made(3, 13, 9))
    check(lambda stack: torch.bmm(x.mT, stack[ids]), made(3, 9, 13))
    check(lambda stack: torch.bmm(stack[ids].chunk(2, 1)[1], x), made(3, 14, 9))


def test_picking_takes_no_memory() -> None:
    stack = made(4, 1 << 20, 1 << 20)
    with products_without_memory():
        picked = stack[torch.tensor([3, 0])]
        product = torch.bmm(picked, torch.ones(2, 1 << 20, 1))
    assert picked.untyped_storage().nbytes() < 1 << 26
    assert product.shape == (2, 1 << 20, 1)


def test_two_placeholders() -> None:
    check(torch.mm, made(7, 9), made(9, 11, seed=1))


def test_all_else_is_as_it_was() -> None:
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    check(lambda weight: weight[torch.tensor([3, 1, 1])] + 1, made(13, 9))
    check(lambda weight: weight[:, torch.tensor([1, 0])], made(3, 4, 5))
    check(lambda weight: torch.mm(x, x.mT), made(3, 4))
