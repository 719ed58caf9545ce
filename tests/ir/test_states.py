"""The states of a model: metadata that says something else than the pass writes is refused."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.common.specs import State
from moec.ir.states import STATES_KEY, set_states, states_of


def model() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=10)


@pytest.mark.parametrize("states", [[], [State("past", "present", 2), State("old", "new", None)]])
def test_what_is_written_is_read(states: list[State]) -> None:
    built = model()
    set_states(built, states)
    assert states_of(built) == states


@pytest.mark.parametrize(
    "text",
    ["", "7", "[7]", "null", '{"a": 1}', '[{"input": "x"}]', '[{"input": 7, "output": "y", "axis": 1}]', "[" * 100_000]
    + [f'[{{"input": "x", "output": "y", "axis": {axis}}}]' for axis in ('"1"', "true", "1.5", "[]", "9" * 5000)],
)
def test_what_nothing_wrote_is_refused(text: str) -> None:
    built = model()
    built.metadata_props[STATES_KEY] = text
    with pytest.raises(
        MoecError,
        match=r"^metadata 'moec.states': .*; run the pass hold-cache, which writes it, or remove",
    ):
        states_of(built)
