"""Simulation of small designs, whose cycles can be counted by hand, and of designs with seeded faults."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from moec.common.errors import MoecError
from moec.simulators.hls.simulator import SimulationError, simulate_functionally, simulate_timed

from ...targets.hls.small_design import CALLS, CHANNELS, LOAD, STORE, TWICE, project, source

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("hls4ml") is None, reason="hls4ml is not installed"),
]

SLOW_TWICE = TWICE.replace("II=1", "II=3")
# Numbers go through two channels in turns of four; the reader begins with the other channel.
PAIRS = source(
    channels='    hls::stream<int, 4> words("words"), later("later");\n    hls::stream<int, 2> doubled("doubled");\n',
    load=LOAD.replace("& words)", "& words, hls::stream<int>& later)").replace(
        "words.write(in[i]);", "if (i % 8 < 4) words.write(in[i]); else later.write(in[i]);"
    ),
    twice=TWICE.replace("& words,", "& words, hls::stream<int>& later,").replace(
        "2 * words.read()", "2 * (i % 8 < 4 ? later.read() - 4 : words.read() + 4)"
    ),
    calls=CALLS.replace("load(in, words)", "load(in, words, later)").replace("twice(words,", "twice(words, later,"),
)
# Asks, in every cycle, whether there is a word.
POLLING_TWICE = """\
void twice(hls::stream<int>& words, hls::stream<int>& doubled) {
    int read = 0;
twice_words:
    while (read < COUNT) {
#pragma HLS LOOP_TRIPCOUNT min=16 max=64
#pragma HLS PIPELINE II=1 style=stp
        if (!words.empty()) {
            doubled.write(2 * words.read());
            read++;
        }
    }
}
"""
POLLING = source(twice=POLLING_TWICE, channels=CHANNELS.replace("2>", "1>"))
# Adds into one of four numbers, and writes all of them over and over.
SUMMING_TWICE = """\
void twice(hls::stream<int>& words, hls::stream<int>& doubled) {
    int sums[4] = {0, 0, 0, 0};
twice_words:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
// a word comes every fourth iteration
#pragma HLS DEPENDENCE variable=sums type=inter CLAIM
        int word = words.read();
        sums[i % 4] += 2 * word;
        doubled.write(sums[i % 4] - 2 * (i < 4 ? 0 : i < 8 ? word - 4 : i < 12 ? 2 * word - 12 : 3 * word - 24));
    }
}
"""


def failure(run) -> SimulationError:
    with pytest.raises(SimulationError) as caught:
        run()
    return caught.value


def test_c_simulation_runs_the_testbench():
    assert simulate_functionally(project(source())) == "PASS: 0 differences\n"
    wrong = project(source(twice=TWICE.replace("2 * words.read()", "words.read()")))
    assert failure(lambda: simulate_functionally(wrong)).kind == "mismatch"
    assert failure(lambda: simulate_timed(wrong)).kind == "mismatch"


@pytest.mark.parametrize(
    ("options", "cycles"),
    [
        ({"memory_latency": 0}, 18),  # a word per cycle, two more until the last one is through
        ({"memory_latency": 5}, 23),
        ({"memory_latency": 0, "memory_share": 0.5}, 33),  # the last beat starts in cycle 31
        ({"memory_latency": 0, "memories": {"gmem_in": "ddr", "gmem_out": "ddr"}}, 32),  # 16 beats in and 16 out
        ({"memory_latency": 0, "total_share": 1.0}, 32),  # likewise, at ports of their own
        ({"memory_latency": 0, "total_share": 2.0}, 18),
        ({"memory_latency": 0, "fifo_depths": 1}, 33),  # a place is free one cycle behind its last word's read
        ({"memory_latency": 0, "fifo_depths": {"words": 1}}, 33),
        ({"memory_latency": 0, "fifo_depths": {"words": 100}}, 18),
    ],
)
def test_cycles(options, cycles):
    result = simulate_timed(project(source()), **options)
    assert (result.cycles, result.later_cycles) == (cycles, (cycles,))


def test_masters_are_connected_as_the_project_says():
    def linked(*connections: str) -> int:
        link = "[connectivity]\n" + "\n".join(f"sp=top_1.m_axi_{connection}" for connection in connections)
        return simulate_timed({**project(source()), "link.cfg": link.encode()}, memory_latency=0).cycles

    assert linked("gmem_in:HP0", "gmem_out:HP1") == 18
    assert linked("gmem_in:HP0", "gmem_out:HP0") == 32
    with pytest.raises(MoecError, match=r"link.cfg: sp=top_1.m_axi_gmem_in; expected sp=UNIT.m_axi_BUNDLE:PORT"):
        linked("gmem_in")


def test_stalls_and_fill():
    """The loader fills the channel, then waits for the slow process, which itself waits only for the first word."""
    result = simulate_timed(project(source(twice=SLOW_TWICE)), memory_latency=0)
    load, twice, store = result.processes
    words, doubled = result.channels
    assert result.cycles == 3 * 16 + 1
    assert (twice.busy, twice.read_stall, twice.write_stall, twice.end) == (48, 0, 0, 48)
    assert (load.busy, load.write_stall) == (16, 27)  # the last word enters when the 14th has been read
    assert (store.busy, store.read_stall) == (16, 33)
    assert (words.depth, words.peak, words.words, words.writer, words.reader) == (2, 2, 16, "load", "twice")
    assert doubled.peak == 1


def test_a_question_is_answered_as_of_its_cycle():
    """Polling costs a cycle per question and sees a word one cycle after it is written, whichever process runs
    first."""
    assert simulate_timed(project(POLLING), memory_latency=0).cycles == 33
    other_order = POLLING.replace(CALLS, CALLS.replace("    load(in, words);\n", "") + "    load(in, words);\n")
    assert simulate_timed(project(other_order), memory_latency=0).cycles == 33


def test_an_undersized_channel_deadlocks():
    """C simulation cannot see this fault, since its channels have no depth."""
    assert simulate_functionally(project(PAIRS)).startswith("PASS")
    assert simulate_timed(project(PAIRS)).cycles > 0
    error = failure(lambda: simulate_timed(project(PAIRS), fifo_depths={"words": 3}))
    assert error.kind == "deadlock"
    assert "they wait in a circle: load -> twice -> load" in str(error)
    assert "process load in cycle 68 waits to write channel words (3 of 3 words), which twice reads" in error.details


def test_waiting_for_words_that_cannot_come_is_a_deadlock():
    too_few = POLLING.replace("for (int i = 0; i < COUNT; i++)", "for (int i = 0; i < COUNT - 1; i++)", 1)
    error = failure(lambda: simulate_timed(project(too_few)))
    assert error.kind == "deadlock"
    assert "process twice" in error.details and "asks whether it can go on" in error.details


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (source(calls=CALLS.replace("load(in, words);", "")), "channel words was read while it was empty"),
        (
            source(store=STORE.replace("i < COUNT", "i < COUNT - 1")),
            "channel doubled was destroyed with 1 words that nobody read",
        ),
    ],
    ids=["empty", "left over"],
)
def test_misuse_of_channels_in_c_simulation(text, message):
    error = failure(lambda: simulate_functionally(project(text)))
    assert (error.kind, message in str(error)) == ("misused channel", True)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (source(store=STORE.replace("i < COUNT", "i < COUNT - 1")), "misused channel", "channel doubled holds 1 words"),
        (source(calls=CALLS + "    store(doubled, out);\n"), "misused channel", "both store and store 2 read"),
        (source(load=LOAD.replace("in[i]", "in[i + 1]")), "outside of memory", "byte 64 behind the start of port in"),
    ],
    ids=["left over", "two readers", "memory"],
)
def test_misuse_in_the_timed_simulation(text, kind, message):
    error = failure(lambda: simulate_timed(project(text)))
    assert (error.kind, message in str(error)) == (kind, True), str(error)


@pytest.mark.parametrize(("claim", "holds"), [("distance=4 dependent=true", True), ("dependent=false", False)])
def test_claims_of_independence_are_checked(claim, holds):
    files = project(source(twice=SUMMING_TWICE.replace("CLAIM", claim)))
    assert simulate_timed(files).output.startswith("PASS")
    if holds:
        assert simulate_timed(files, watch_dependences=True).output.startswith("PASS")
    else:
        error = failure(lambda: simulate_timed(files, watch_dependences=True))
        assert error.kind == "false dependence"
        assert "process twice reads element 0 of sums 4 iterations behind the one that wrote it" in str(error)


def test_variables_that_are_not_initialised():
    text = source(twice=TWICE.replace("doubled.write(2", "int start; doubled.write((i ? 0 : start) + 2"))
    error = failure(lambda: simulate_functionally(project(text), optimization="-O0", poison=True))
    assert error.kind == "mismatch"
    initialised = text.replace("int start;", "int start = 0;")
    assert simulate_functionally(project(initialised), optimization="-O0", poison=True).startswith("PASS")


def test_accesses_outside_of_arrays():
    text = source(twice=TWICE.replace("doubled.write(2", "int at[15]; at[i] = i; doubled.write(at[i] - i + 2"))
    assert failure(lambda: simulate_functionally(project(text), sanitize=True)).kind == "undefined behaviour"
    large_enough = text.replace("at[15]", "at[16]")
    assert simulate_functionally(project(large_enough), sanitize=True).startswith("PASS")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fifo_depths": {"nobody": 3}}, "a depth was given for channel nobody, which is not in this design"),
        ({"memories": {"nobody": "ddr"}}, "a memory was given for bundle nobody, which is not in this design"),
        ({"memory_share": 2.0}, "memory_share=2.0: expected a share above 0, up to 1"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(MoecError, match=message):
        simulate_timed(project(source()), **options)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang is not installed")
def test_another_compiler():
    for options in ({}, {"optimization": "-O0", "poison": True}):
        assert simulate_functionally(project(source()), compiler="clang++", **options).startswith("PASS")
    assert simulate_timed(project(source()), compiler="clang++") == simulate_timed(project(source()))
    with pytest.raises(MoecError, match="use g"):
        simulate_timed(project(source()), compiler="clang++", watch_dependences=True)


def test_a_missing_package_and_compiler(monkeypatch, tmp_path):
    with pytest.raises(MoecError, match=r"no-such-compiler was not found; .* install one"):
        simulate_functionally(project(source()), compiler="no-such-compiler")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MoecError, match=r"ap_int.h .* pip install"):
        simulate_timed(project(source(twice=TWICE.replace("2 *", "1 + 1 *"))), compiler="c++")


def test_a_compile_error_names_the_delivered_line():
    text = source(twice=TWICE.replace("words.read()", "undeclared"))
    for simulate in (simulate_functionally, simulate_timed):
        with pytest.raises(MoecError, match=r"top\.cpp:17: 'undeclared' was not declared"):
            simulate(project(text))
