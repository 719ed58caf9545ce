"""The check that disposes rejects every proposal that is a little wrong."""

import dataclasses

import numpy as np
import onnx.parser
import pytest

from moec.frontend.onnx.importer import import_model
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, spec_of
from moec.passes import pipeline
from moec.passes.raising.candidates import candidate_blocks, find_logits
from moec.passes.raising.check import check_proposal, difference
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.matching.search import find_match
from moec.passes.raising.mlps import find_mlps
from moec.passes.raising.router import propose_routings
from moec.passes.raising.weights import ExpertTensor, arrangements

from ...text_models import give_constants


@pytest.fixture
def matched(build, texts, normal):
    """A block and the proposal that agrees with it."""
    model = build(texts["batched"], up=normal(4, 10, 6), down=normal(4, 6, 5))
    dataflow = DataFlow(model.graph)
    anchor = next(node for node in model.graph if node.op_type == "TopK")
    block = next(candidate_blocks(dataflow, anchor, find_logits(dataflow, anchor)[0]))
    results = list(arrangements(dataflow, find_mlps(block), block.E, block.d))
    return block, find_match(block, propose_routings(block), results).proposal


def test_right_proposal_agrees(matched):
    block, proposal = matched
    verdict = check_proposal(block, proposal)
    assert verdict.agrees and verdict.difference < 1e-9 and not verdict.undefined


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "gelu"},
        {"gate_layout": "up_gate"},
        {"gate_layout": "interleaved"},
        {"alpha": 1.01},
        {"limit": 7.0},
        {"up_offset": 1e-3},
        {"weight_on_input": True},
    ],
)
def test_changed_experts_are_rejected(matched, change):
    block, proposal = matched
    changed = dataclasses.replace(proposal, spec=dataclasses.replace(proposal.spec, **change))
    assert not check_proposal(block, changed).agrees


@pytest.mark.parametrize(
    "change", [{"normalize": False}, {"k": 1}, {"score": "sigmoid"}, {"scale": 1.001}, {"capacity": 3}]
)
def test_changed_router_is_rejected(matched, change):
    block, proposal = matched
    routing = dataclasses.replace(proposal.routing, spec=dataclasses.replace(proposal.routing.spec, **change))
    assert not check_proposal(block, dataclasses.replace(proposal, routing=routing)).agrees


@pytest.mark.parametrize("expert", range(4))
def test_one_wrong_weight_of_any_expert_is_rejected(matched, expert):
    block, proposal = matched

    class Altered(ExpertTensor):
        def __getitem__(self, index):
            entry = super().__getitem__(index).copy()
            if index == expert:
                entry[0] *= 1.01
            return entry

    down = proposal.tensors["down"]
    altered = Altered(down.dataflow, down.shape, down.entries)
    changed = dataclasses.replace(proposal, tensors={**proposal.tensors, "down": altered})
    assert not check_proposal(block, changed).agrees


GELU = """<ir_version: 10, opset_import: ["" : 24]> block (float16[T,6] x) => (float16[T,6] y) {
    logits = MatMul (x, gate)
    scores = Softmax <axis = -1> (logits)
    w, chosen = TopK <axis = -1> (scores, k)
    shape = Shape (scores)
    zeros = Expand (zero, shape)
    mixture = ScatterElements <axis = -1> (zeros, chosen, w)
    h = Einsum <equation = "td,edf->tef"> (x, up)
    cube = Pow (h, three)
    bend = Mul (cube, cubic)
    bent = Add (h, bend)
    inner = Mul (bent, root)
    tanh = Tanh (inner)
    raised = Add (tanh, one)
    halved = Mul (raised, half)
    a = Mul (h, halved)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    y = Einsum <equation = "ted,te->td"> (o, mixture) }"""
NUMBERS = {"zero": 0, "one": 1, "half": 0.5, "three": 3, "root": np.sqrt(2 / np.pi)}


@pytest.mark.parametrize(("cubic", "activation"), [(0.044715, "gelu_tanh"), (0.0455, None)])
def test_numbers_of_an_activation_may_be_rounded_to_16_bits(normal, cubic, activation):
    """But may not differ by more than that."""
    numbers = {**NUMBERS, "cubic": cubic, "gate": normal(6, 4), "up": normal(4, 6, 5), "down": normal(4, 5, 6)}
    proto = onnx.parser.parse_model(GELU)
    give_constants(proto, {"k": np.array([2])} | {name: np.float16(value) for name, value in numbers.items()})
    model = import_model(proto)
    pipeline.run(model, pipeline.parse(f"{pipeline.CLEAN_UP},raise-moe"))
    actual = [spec_of(node, ExpertsSpec).activation for node in model.graph if dialect.is_moec(node, "Experts")]
    assert actual == ([] if activation is None else [activation])


def test_difference_counts_rows_by_their_own_magnitude():
    want = np.array([[1e6, 1.0], [1.0, 1.0]])
    got = np.array([[1e6, 1.1], [1.0, 1.1]])
    assert difference(got, want) == pytest.approx(0.1)
    assert difference(np.array([[np.nan]]), np.array([[1.0]])) == np.inf
    assert difference(np.zeros((0, 2)), np.zeros((0, 2))) == 0
