"""The states of a model: the outputs of a run that are inputs of the next one, recorded in the model's metadata.

The pass ``hold-cache`` writes them, under ``STATES_KEY``, as JSON:
``[{"input": "past", "output": "present", "axis": 2}]``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.specs import State

STATES_KEY = "moec.states"
ATTENTION_CACHES = {1: (4, 1), 2: (5, 2)}
"""Inputs of the past and of the new keys or values of ONNX's Attention, by the output of the present ones."""


def set_states(model: ir.Model, states: Sequence[State]) -> bool:
    """Write the metadata of a model; return whether it changed."""
    text = json.dumps([dataclasses.asdict(state) for state in states])
    if model.metadata_props.get(STATES_KEY, "[]") == text:
        return False
    model.metadata_props[STATES_KEY] = text
    return True


def states_of(model: ir.Model) -> list[State]:
    """The states in a model's metadata; empty without such metadata. Raises MoecError if it has another form."""
    text = model.metadata_props.get(STATES_KEY, "[]")
    try:
        states = [State(**entry) for entry in json.loads(text)]
    except (ValueError, RecursionError, TypeError):
        states = None
    if states is None or not all(map(_is_state, states)):
        raise MoecError(
            f"metadata {STATES_KEY!r} is {text[:80]!r}; expected what the pass hold-cache writes: run it, or remove it "
            "from the model"
        )
    return states


def _is_state(state: State) -> bool:
    is_named = isinstance(state.input, str) and isinstance(state.output, str)
    return is_named and (state.axis is None or type(state.axis) is int)
