"""Names of kernels: short enough for files, one for each kernel."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec


@pytest.mark.parametrize("length, cut", [(8, False), (90, True)])
def test_the_name_of_a_long_chain_is_cut(length: int, cut: bool) -> None:
    body = " ".join(f"v{i + 1} = {'Sin' if i % 2 else 'Cos'}(v{i})" for i in range(length))
    text = f'<ir_version: 10, opset_import: ["" : 24]> g (float[T] v0) => (float[T] v{length}) {{ {body} }}'
    model = moec.compile(onnx.parser.parse_model(text), threads=1)
    (name,) = model.kernels
    assert (len(name) > 100) == cut and len(name) <= 120
    expected = np.linspace(-1, 1, 5)
    x = expected.astype(np.float32)
    for step in range(length):
        expected = np.sin(expected) if step % 2 else np.cos(expected)
    np.testing.assert_allclose(model(x)[f"v{length}"], expected, atol=1e-5)
