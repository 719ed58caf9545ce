"""PyTorch's own loops, whose number of steps is known only when the model runs."""

from __future__ import annotations

import numpy as np
import pytest

import moec

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.nightly


class Scanned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.product = torch.nn.Linear(8, 8)

    def forward(self, x, state):
        from torch._higher_order_ops.scan import scan

        def step(before, row):
            after = torch.tanh(self.product(before)) + row
            return after, after * 2

        return scan(step, state, x, dim=0)


class Repeated(torch.nn.Module):
    def forward(self, x, count):
        from torch._higher_order_ops.while_loop import while_loop

        first = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, h: i < count, lambda i, h: (i + 1, torch.tanh(h) * 1.5), (first, x))[1]


def compiled(module, arguments, sizes) -> moec.CompiledModel:
    return moec.compile(torch.export.export(module.eval(), arguments, dynamic_shapes=sizes, strict=False))


def test_scan():
    module = Scanned()
    model = compiled(module, (torch.ones(7, 2, 8), torch.zeros(2, 8)), ({0: torch.export.Dim("T")}, None))
    for steps in (2, 9):
        x, state = torch.randn(steps, 2, 8), torch.randn(2, 8)
        for value, expected in zip(model(x.numpy(), state.numpy()).values(), module(x, state), strict=True):
            np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-5)


def test_while_loop():
    module = Repeated()
    model = compiled(module, (torch.ones(3, 4), torch.tensor(5)), ({0: torch.export.Dim("B")}, None))
    for count in (0, 1, 12):
        x = torch.randn(5, 4)
        (value,) = model(x.numpy(), np.array(count)).values()
        np.testing.assert_allclose(value, module(x, torch.tensor(count)).numpy(), atol=1e-5)
