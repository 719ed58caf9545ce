"""Trials on narrow copies of a block, and differences that only the block itself shows."""

import dataclasses

import numpy as np
import pytest

from moec.ir import dialect, interpreter
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising import check
from moec.passes.raising.block import Block
from moec.passes.raising.matching import search
from moec.passes.raising.matching.blocks import KnownBlocks, match_block
from moec.passes.raising.miniature import miniature

from .wide_experts import ALIKE, DOWN, PLAIN, D, F, block_of, text_of, weights_of


@pytest.fixture
def tokens(monkeypatch):
    """Numbers of tokens that blocks of each width were computed for."""
    results: dict[int, int] = {}
    y_of = Block.y_of

    def spy(block, x, logits, watch=None):
        results[block.d] = results.get(block.d, 0) + len(x)
        return y_of(block, x, logits, watch)

    monkeypatch.setattr(Block, "y_of", spy)
    return results


@pytest.fixture
def model(build, texts, normal):
    def model(body, other=None, d=D, f=F, **constants):
        text = text_of(texts["router"], body, other)
        return build(text, f"T,{d}", **{**weights_of(normal, d, f), **constants})

    return model


def is_raised(model):
    """Whether a model is raised, and then computes the same."""
    x = np.random.default_rng(5).normal(size=(7, model.graph.inputs[0].shape[-1])).astype(np.float32)
    before = interpreter.run(model, {"x": x})["y"]
    RaiseMoE().apply(model, Report())
    np.testing.assert_allclose(interpreter.run(model, {"x": x})["y"], before, atol=2e-5)
    return any(dialect.is_moec(node, "Experts") for node in model.graph)


@pytest.mark.parametrize("body", ALIKE.values(), ids=ALIKE)
def test_most_trials_run_on_a_miniature(model, tokens, body):
    assert is_raised(model(body))
    assert tokens[24] > 300 and tokens[D] < 60


@pytest.mark.parametrize("sizes", [(96, 96), (256, 128), (64, 128)])
def test_widths_that_are_equal_or_halves_of_each_other(model, tokens, sizes):
    d, f = sizes
    assert is_raised(model(ALIKE["halves"], d=d, f=f))
    assert tokens[d] < 60


def test_stacked_experts(build, texts, normal, tokens):
    weights = {"router": normal(D, 4), "up": normal(4, D, F), "down": normal(4, F, D)}
    assert is_raised(build(texts["dense"], f"T,{D}", **weights))
    assert tokens[24] > 300 and tokens[D] < 60


def test_narrow_experts_are_tried_themselves(model, tokens):
    assert is_raised(model(PLAIN + DOWN, d=24, f=16))
    assert list(tokens) == [24]


LIMIT = "l_{e} = MatMul (x, up_{e})\n c_{e} = Min (l_{e}, far)\n a_{e} = Relu (c_{e})\n" + DOWN
WINDOW = (
    "l_{e} = MatMul (x, up_{e})\n above_{e} = Greater (l_{e}, near)\n below_{e} = Less (l_{e}, far)\n"
    "in_{e} = And (above_{e}, below_{e})\n r_{e} = Relu (l_{e})\n a_{e} = Where (in_{e}, near, r_{e})\n" + DOWN
)
COLUMNS = "l_{e} = MatMul (x, up_{e})\n c_{e} = Min (l_{e}, far_by_column)\n a_{e} = Relu (c_{e})\n" + DOWN
SMOOTH = (
    "l_{e} = MatMul (x, up_{e})\n p_{e} = Slice (l_{e}, zero, some, minus_one)\n"
    "q_{e} = Slice (l_{e}, some, end, minus_one)\n n_{e} = Mul (q_{e}, q_{e})\n t_{e} = Add (n_{e}, tiny)\n"
    "s_{e} = Div (n_{e}, t_{e})\n m_{e} = Mul (q_{e}, s_{e})\n c_{e} = Concat <axis = -1> (p_{e}, m_{e})\n"
    "a_{e} = Relu (c_{e})\n" + DOWN
)
"""Shrinking of small numbers, in columns that a narrow copy does not have; it decides nothing."""

TRAPS = [
    pytest.param(LIMIT, id="a limit"),
    pytest.param(SMOOTH, id="some columns shrink"),
    pytest.param(WINDOW, id="a window", marks=pytest.mark.nightly),
    pytest.param(COLUMNS, id="a limit of one column", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("other", TRAPS)
def test_one_expert_that_differs_far_away_leaves_the_block(model, other):
    far_by_column = np.full(F, np.inf, np.float32)
    far_by_column[-1] = 50
    numbers = {"near": np.float32(40), "far": np.float32(41), "tiny": np.float32(1e-13), "some": np.array([F - 8])}
    assert not is_raised(model(PLAIN + DOWN, other, far_by_column=far_by_column, **numbers))


def test_weights_are_compared_in_the_block_itself(model):
    """An agreeing miniature does not check weights: here those of two experts are swapped."""
    block = block_of(model(PLAIN + DOWN))
    proposal = match_block(block, KnownBlocks()).proposal
    tried = check.check_proposal(*miniature(block, proposal))
    assert tried.agrees and check.check_weights(block, proposal, tried).agrees
    up = proposal.tensors["up"]
    first, second, *others = up.entries
    swapped = dataclasses.replace(up, entries=(second, first, *others))
    wrong = dataclasses.replace(proposal, tensors={**proposal.tensors, "up": swapped})
    assert not check.check_weights(block, wrong, tried).agrees


def test_a_miniature_that_does_not_agree_is_no_verdict(model, monkeypatch, tokens):
    """The block itself is tried then."""
    small = search.miniature

    def wrong(block, proposal):
        copy, own = small(block, proposal)
        return copy, dataclasses.replace(own, spec=dataclasses.replace(own.spec, activation="gelu"))

    monkeypatch.setattr(search, "miniature", wrong)
    assert is_raised(model(PLAIN + DOWN))
    assert tokens[D] > 300
