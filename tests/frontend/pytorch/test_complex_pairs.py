"""Complex numbers as pairs of real tensors."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
from moec.frontend.pytorch.complex_pairs import ComplexPair, complex_as_pairs  # noqa: E402


def rotated(x: Any, angles: Any) -> Any:
    turns = torch.polar(torch.ones_like(angles), angles) * 0.5
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    back = torch.view_as_real(pairs * turns.unsqueeze(0).conj()).flatten(2)
    return back + torch.view_as_real(turns[None].to(torch.complex64) * pairs + turns[None]).flatten(2)


def test_rotations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, angles = torch.randn(2, 3, 8, generator=generator), torch.randn(3, 4, generator=generator)
    with complex_as_pairs():
        actual = rotated(x, angles)
        assert isinstance(torch.complex(x, x), ComplexPair)
    torch.testing.assert_close(actual, rotated(x, angles))


def test_what_pairs_do_not_have_is_an_error() -> None:
    with complex_as_pairs(), pytest.raises(AttributeError, match="complex tensor's sqrt is nothing"):
        torch.complex(torch.ones(1), torch.ones(1)).sqrt()
