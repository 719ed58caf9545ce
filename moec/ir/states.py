"""The states of a model: the outputs of a run that are inputs of the next one, recorded in the model's metadata.

The pass ``hold-cache`` writes them, under ``STATES_KEY``, as JSON:
``[{"input": "past", "output": "present", "axis": 2}]``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import onnx_ir as ir

from moec.common.records import read_json
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
    advice = "run the pass hold-cache, which writes it, or remove it from the model"
    return read_json(list[State], text, f"metadata {STATES_KEY!r}", advice)
