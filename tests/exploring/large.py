"""A document of a large model, which no compilation made: 48 layers of 128 experts, with a profile."""

from __future__ import annotations

import random
from typing import Any

from moec.exploring.document import SCHEMA, VERSION
from moec.exploring.expert_facts import expert_facts

LAYERS, EXPERTS = 48, 128
FORMS = ("int2/32", "int3/32", "int4/32", "int8")


def large_document(layers: int = LAYERS, experts: int = EXPERTS) -> dict[str, Any]:
    """Describe a model of ``layers`` with attention and a MoE block of ``experts`` each, of which some are dropped,
    merged, or read from their file."""
    random.seed(0)
    blocks = [_block(number, experts) for number in range(layers)]
    sections = {
        "moe_blocks": blocks,
        "layers": {
            "parts": [part for number in range(layers) for part in _parts(number)],
            "cases": [{"title": "1 token", "measured": False, "limits": "a machine", "microseconds": None}],
            "no_times": None,
            "stored_bytes": 1 << 34,
        },
        "experts": {
            "layers": [_layer(block) for block in blocks],
            "profile": {"file": "p.moeprof", "model": "large", "data": [{"name": "text", "tokens": 100000}]},
            "no_profile": None,
        },
        "pairs": [[[random.randrange(4000) for _ in range(row + 1)] for row in range(experts)] for _ in blocks],
        "kernels": [{"name": "attention", "op": "Attention", "computes": "y", "calls": layers, "nodes": []}],
        "losses": [],
        "remarks": [],
    }
    artifact = {"title": "large", "target": "cpu", **sections}
    return {"schema": SCHEMA, "version": VERSION, "title": "large", "artifacts": [artifact]}


def _block(number: int, experts: int) -> dict[str, Any]:
    last = experts - 1
    origins = {"experts": [[0, 1], *([expert] for expert in range(2, last))], "removed": {str(last): "prune: unused"}}
    formats = {name: random.choices(FORMS, k=experts - 2) for name in ("up", "down")}
    return {
        "name": f"block {number}",
        "op": "moec.MoE",
        "num_experts": experts - 2,
        "top_k": 8,
        "hidden_size": 2048,
        "intermediate_size": 768,
        "router": "softmax_topk",
        "activation": "silu",
        "gate_layout": "gate_up",
        "formulation": "batched",
        "experts": {"arithmetic": "int8", "hidden_sizes": []},
        "formats": formats,
        "origins": origins,
    }


def _layer(block: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {
            **fact,
            "tokens": int(random.lognormvariate(8.5, 0.6)),
            "weight": round(random.random(), 4),
            "errors": {name: round(random.random() / 4, 4) for name in fact["formats"]},
            "error": round(random.random() / 3, 4),
            "memory": random.choice(("kept", "kept", "kept", "read")),
        }
        for fact in expert_facts(block)
    ]
    loss = {"pass_name": "assign-bits", "layer": block["name"], "formats": {"up": list(FORMS)}, "arithmetic": "int8"}
    loss |= {"weight_error": 0.2, "output_error": 0.1}
    return {"name": block["name"], "top_k": 8, "tokens": 100000, "experts": rows, "losses": [loss]}


def _parts(number: int) -> list[dict[str, Any]]:
    shared = {"layer": number, "shared_bytes": 0, "kernels": ["attention"], "reads": []}
    return [
        {"title": "Attention", "kind": "attention", "block": None, "nodes": ["a"] * 30, "weight_bytes": 9 << 20}
        | {"formats": {"int8": 9 << 20}, "microseconds": [40.0 + number], **shared},
        {"title": "MoE block", "kind": "moe", "block": number, "nodes": ["b"] * 9, "weight_bytes": 220 << 20}
        | {"formats": {"int3/32": 220 << 20}, "microseconds": [100.0], **shared},
    ]
