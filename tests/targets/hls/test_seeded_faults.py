"""Faults seeded into a generated project that C simulation cannot see, and the checks that see them."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import SimulationError, simulate_functionally, simulate_timed

from .layers import float_block, project, quantized, tokens_for
from .lint.linter import lint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("hls4ml") is None, reason="hls4ml is not installed"),
]

UP, DOWN, SELECT = (f"src/moec/moec_{name}.h" for name in ("product_up", "product_down", "select"))
TOP, WEIGHTS = "src/model.cpp", "src/moec/moec_weights.h"
# One loader for both matrices, in the order in which they are used.
LOAD_BOTH = """\
template <class Block>
void load_both(const beat_t* up, const beat_t* down, hls::stream<job_t>& jobs_up, hls::stream<job_t>& jobs_down,
               hls::stream<beat_t>& beats_up, hls::stream<beat_t>& beats_down) {
    typedef sizes<Block> S;
    const int UP = tile_beats_up<Block>(0);
    const int DOWN = Block::TILES * S::WEIGHT_BEATS_DOWN + S::PARAMETER_BEATS_DOWN;
axi_activation:
    for (int i = 0; i < ACTIVATION_BEATS; i++) {
#pragma HLS PIPELINE II=1 style=stp
        beats_up.write(up[i]);
    }
load_jobs:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=S::ALL_EXPERTS*Block::TILES+1
        const job_t job = jobs_up.read();
        jobs_down.read();
        if (job.end) break;
    axi_up:
        for (int i = 0; i < UP; i++) {
#pragma HLS PIPELINE II=1 style=stp
            beats_up.write(up[ACTIVATION_BEATS + (int(job.expert) * Block::TILES + int(job.tile)) * UP + i]);
        }
        const int count = S::WEIGHT_BEATS_DOWN + (job.last ? S::PARAMETER_BEATS_DOWN : 0);
    axi_down:
        for (int i = 0; i < count; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WEIGHT_BEATS_DOWN max=S::WEIGHT_BEATS_DOWN+S::PARAMETER_BEATS_DOWN
#pragma HLS PIPELINE II=1 style=stp
            beats_down.write(down[int(job.expert) * DOWN + int(job.tile) * S::WEIGHT_BEATS_DOWN + i]);
        }
    }
}

}  // namespace moec
"""


@pytest.fixture(scope="module")
def files():
    block = float_block(RouteSpec(2), ExpertsSpec("gelu", "none"), width=64, hidden=64)
    integers = quantized(block)
    return project(integers, integers.quantized(tokens_for(block, 13)), hidden_tile=32)


def edited(files, path, *edits):
    """The project with pieces of a file replaced."""
    text = files[path].decode()
    for before, after in edits:
        assert before in text, f"{path} has changed: expected {before}"
        text = text.replace(before, after)
    return {**files, path: text.encode()}


def failure(run) -> SimulationError:
    with pytest.raises(SimulationError) as caught:
        run()
    return caught.value


@pytest.mark.nightly
def test_one_loader_for_both_products_deadlocks(files):
    """The second product's weights queue behind weights of the first product, which waits for the second one."""
    channels = "jobs_load_up[0], jobs_load_down[0], beats_up[0], beats_down[0]"
    both = edited(files, WEIGHTS, ("}  // namespace moec\n", LOAD_BOTH))
    both = edited(
        both,
        TOP,
        ("load_up<experts_block, 0>(up_weights, up_at, tiles, passes, jobs_load_up[0], beats_up[0]);", ""),
        ("load_down<experts_block, 0>(down_weights, down_at, tiles, jobs_load_down[0], beats_down[0]);", ""),
        (
            "product_up<experts_block>",
            f"load_both<experts_block>(up_weights, down_weights, {channels});\n    product_up<experts_block>",
        ),
    )
    for product in (UP, DOWN):
        both = edited(both, product, ("beats[m].read_nb(beat)", "(beats[m].read(beat), true)"))
    error = failure(lambda: simulate_timed(both, fifo_depths={"beats_up": 8, "beats_down": 8}))
    assert error.kind == "deadlock"
    assert "they wait in a circle: load_both -> product_up -> product_down -> load_both" in str(error)


@pytest.mark.nightly  # the check itself, of a small design: tests/simulators/hls/test_simulator.py
def test_an_entry_of_the_chosen_experts_is_not_initialised(files):
    assert "PASS" in simulate_functionally(files, optimization="-O0", poison=True)
    text = files[SELECT].decode()
    start, last = text.index("best[j].choice = LEAST"), "best[j].expert = 0;\n"
    without = {**files, SELECT: (text[:start] + text[text.index(last) + len(last) :]).encode()}
    assert failure(lambda: simulate_functionally(without, optimization="-O0", poison=True)).kind == "mismatch"


@pytest.mark.nightly  # likewise; the claims of real code are watched in test_striping.py
def test_a_claim_of_independence_is_false(files):
    """Sums are carried from one iteration to the next. C simulation gets this right whatever the pragma claims."""
    assert "PASS" in simulate_timed(files, watch_dependences=True).output
    claim = "// false\n#pragma HLS DEPENDENCE variable=totals type=inter dependent=false\n"
    start = (
        "up_inputs:\n                for (int d = 0; d < S::WIDTH_CHUNKS; d++) {\n#pragma HLS PIPELINE II=1 style=stp\n"
    )
    wrong = edited(files, UP, (start, start + claim))
    assert lint(wrong) == []
    error = failure(lambda: simulate_timed(wrong, watch_dependences=True))
    assert error.kind == "false dependence"
    assert "process product_up reads element 0 of totals 1 iterations behind" in str(error)


@pytest.mark.parametrize(
    ("path", "before", "after", "rule"),
    [
        (UP, "variable=weights type=complete dim=2", "variable=weight type=complete dim=2", "declared-variables"),
        (UP, "ARRAY_PARTITION variable=sums", "ARRAY_PARTITON variable=sums", "known-pragmas"),
        (UP, "#pragma HLS BIND_STORAGE variable=weights type=ram_s2p impl=lutram", "", "bound-storage"),
        (SELECT, "i < STEPS; i++) {\n#pragma HLS PIPELINE II=1 style=stp", "i < STEPS; i++) {", "pipelined-loops"),
        (TOP, "router<experts_block>(router_weights", "router<experts_block>(up_weights", "one-process-per-array"),
        (TOP, "items_down, hidden, beats_down", "items_down, hidden, beats_up", "single-producer-and-consumer"),
    ],
)
def test_wrong_pragmas_and_regions(files, path, before, after, rule):
    assert lint(files) == []
    assert rule in {finding.rule for finding in lint(edited(files, path, (before, after)))}
