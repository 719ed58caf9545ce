"""The form that an output and a name ask for."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.exporting.forms import form_for


@pytest.mark.parametrize(("output", "name"), [("out.onnx", None), ("out", "onnxruntime"), ("out.bin", "onnxruntime")])
def test_a_form_is_found(output, name):
    assert form_for("model.onnx", output, name).name == "onnxruntime"


def test_unknown_names_and_outputs_are_refused():
    with pytest.raises(MoecError, match="no form 'onnxruntme'; did you mean 'onnxruntime'"):
        form_for("model.onnx", "out.onnx", "onnxruntme")
    with pytest.raises(MoecError, match=r"out: the name does not say which form to write; name it by --for: onnx"):
        form_for("model.onnx", "out", None)
