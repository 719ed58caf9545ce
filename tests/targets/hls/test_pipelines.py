"""Words in pipelines: small designs whose cycles can be counted by hand, and generated ones, whose channels are as deep
as stalling pipelines need, and not much deeper."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import shutil

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import SimulationError, simulate_timed
from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.design.attention import AttentionDesign
from moec.targets.hls.design.channels import Channel, channels_of
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.normalization import FloatNorm
from moec.targets.hls.design.numbers import MOST_STAGES

from ...products import thinned
from . import layers, small_design, test_attention

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("hls4ml") is None, reason="hls4ml is not installed"),
]
STYLES = ("stp", "flp", "frp")

# Every word goes to the next process through two channels: as it is, and doubled.
TWO_WAYS = small_design.source(
    twice="""\
void twice(hls::stream<int>& words, hls::stream<int>& early, hls::stream<int>& late) {
twice_words:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        const int word = words.read();
        early.write(word);
        late.write(2 * word);
    }
}

void check(hls::stream<int>& late, hls::stream<int>& early, hls::stream<int>& doubled) {
check_words:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        doubled.write(late.read() == 2 * early.read() ? 2 * i : -1);
    }
}
""",
    channels='    hls::stream<int, 2> words("words"), late("late"), doubled("doubled");\n'
    '    hls::stream<int, 6> early("early");\n',
    calls="    load(in, words);\n    twice(words, early, late);\n    check(late, early, doubled);\n"
    "    store(doubled, out);\n",
)
# Each question follows the answer to the one before.
QUESTIONS = small_design.source(
    twice="""\
void ask(hls::stream<int>& words, hls::stream<int>& answers, hls::stream<int>& questions, hls::stream<int>& doubled) {
ask_each:
    for (int i = 0; i <= COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        if (i > 0) doubled.write(answers.read());
        if (i < COUNT) questions.write(words.read());
    }
}

void answer(hls::stream<int>& questions, hls::stream<int>& answers) {
answer_each:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        answers.write(2 * questions.read());
    }
}
""",
    channels=small_design.CHANNELS + '    hls::stream<int, 2> questions("questions"), answers("answers");\n',
    calls="    load(in, words);\n    ask(words, answers, questions, doubled);\n    answer(questions, answers);\n"
    "    store(doubled, out);\n",
)


def cycles_or_failure(files: dict[str, bytes], **options) -> int | str:
    try:
        return simulate_timed(files, **options).cycles
    except SimulationError as error:
        return error.kind


@pytest.mark.parametrize("style", STYLES)
def test_a_pipeline_delays_its_words_and_its_end(style):
    """Three processes in series delay each word by 7 cycles, and the last one takes 7 more to end."""
    files = small_design.project(small_design.source())
    assert cycles_or_failure(files, memory_latency=0, pipeline_style=style, pipeline_depth=7) == 18 + 3 * 7


def test_a_word_may_leave_in_an_earlier_stage():
    files = small_design.project(small_design.source())
    stages = {"words": 2, "doubled": 3}
    assert cycles_or_failure(files, memory_latency=0, pipeline_depth=7, stages=stages) == 18 + 2 + 3 + 7


@pytest.mark.parametrize(("depth", "locks"), [(6, False), (5, True)])
def test_a_stalling_pipeline_needs_room_for_all_that_its_first_stages_write(depth, locks):
    """The first of 6 stages writes ``early`` and the last ``late``, so 6 early words are written before the first late
    one."""
    files = small_design.project(TWO_WAYS)
    actual = {
        style: cycles_or_failure(files, pipeline_style=style, pipeline_depth=6, fifo_depths={"early": depth})
        for style in STYLES
    }
    assert (actual["stp"] == "deadlock") == locks
    assert isinstance(actual["flp"], int) and isinstance(actual["frp"], int)
    assert isinstance(cycles_or_failure(files, fifo_depths=1), int)  # without stages, a depth of 1 is enough


def test_a_deadlock_says_what_is_frozen():
    with pytest.raises(SimulationError) as error:
        simulate_timed(small_design.project(TWO_WAYS), pipeline_depth=6, fifo_depths={"early": 5})
    assert "they wait in a circle: twice -> check -> twice" in str(error.value)
    assert "words are frozen in its pipeline" in error.value.details


@pytest.mark.parametrize(("depth", "expected"), [(0, int), (4, str)])
def test_a_stalling_pipeline_keeps_its_words_while_the_next_input_is_missing(depth, expected):
    files = small_design.project(QUESTIONS)
    assert isinstance(cycles_or_failure(files, pipeline_depth=depth, pipeline_style="stp"), expected)
    assert isinstance(cycles_or_failure(files, pipeline_depth=depth, pipeline_style="flp"), int)


def test_the_style_is_the_one_that_the_loop_declares():
    """Loops that use memory stall whatever they declare, since frp does not support m_axi."""
    files = small_design.project(TWO_WAYS.replace("style=stp", "style=frp"))
    assert isinstance(cycles_or_failure(files, pipeline_depth=6, fifo_depths={"early": 2}), int)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": {"nobody": 1}}, "a stage was given for channel nobody"),
        ({"stages": {"words": 3}, "pipeline_depth": 2}, "stage 3 of 2"),
        ({"pipeline_style": "fast"}, "pipeline style fast; expected stp, frp or flp"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(SimulationError, match=message):
        simulate_timed(small_design.project(small_design.source()), **options)


@dataclasses.dataclass(frozen=True)
class Generated:
    files: dict[str, bytes]
    channels: list[Channel]

    def run(self, **options) -> int | str:
        return cycles_or_failure(self.files, **{"pipeline_depth": MOST_STAGES, **options})


@pytest.fixture(scope="module")
def moe() -> Generated:
    """A project in which a token takes an array one cycle, so that as many tokens as possible are in a pipeline."""
    block = layers.float_block(RouteSpec(2), ExpertsSpec("gelu", "none"), 2, 16, 16)
    norm = FloatNorm("layer", np.ones(16, np.float32), np.zeros(16, np.float32), 1e-5)
    integers = layers.quantized(dataclasses.replace(block, norm=norm), most_tokens=90)
    design = {"hidden_tile": 16, "router_lanes": 16}
    steps = integers.quantized(layers.tokens_for(block, 90))
    return Generated(layers.project(integers, steps, **design), channels_of(Design(integers.shape, **design)))


@pytest.fixture(scope="module")
def attention() -> Generated:
    block = test_attention.float_attention(2, 8, 24)
    integers = test_attention.quantized(block, most_tokens=70)
    steps = integers.quantized(test_attention.tokens_for(block, 1, 70)[0])
    channels = attention_channels(AttentionDesign(integers.shape, lanes=8))
    return Generated(test_attention.files_of(integers, steps, lanes=8), channels)


@pytest.fixture(scope="module")
def cached() -> Generated:
    """A project with a cache, a window and sinks, in which all heads are normalised together."""
    block = test_attention.decoder(joint=True, window=5, sinks=test_attention.SINKS)
    integers = test_attention.quantized(block, most_tokens=24, cached=51)
    steps = integers.quantized(test_attention.tokens_for(block, 1, 51)[0])
    channels = attention_channels(AttentionDesign(integers.shape, lanes=8))
    return Generated(test_attention.files_of(integers, steps, lanes=8), channels)


@thinned("kind", ["attention", "moe", "cached"], 3)
def test_declared_channels_hold_in_all_styles(kind, request):
    generated = request.getfixturevalue(kind)
    for style in STYLES:
        assert isinstance(generated.run(pipeline_style=style), int)


@pytest.mark.parametrize(
    ("kind", "channel", "depth", "stages", "waiting"),
    [
        *(
            pytest.param(*case, marks=pytest.mark.nightly)  # a second design, which takes ten seconds to compile
            for case in (
                ("moe", "steps", 58, {}, "measure_tokens -> normalize_tokens"),
                ("moe", "items_down", 59, {}, "product_up -> product_down"),
                ("moe", "items_combine", 59, {}, "product_down -> combine"),
            )
        ),
        ("attention", "items_split", 20, {}, "product_up -> split_heads"),
        ("attention", "items_end", 19, {}, "product_down -> pass_results"),
        # Reciprocals leave a deep divider late and weighted values leave early; then the other way around.
        ("attention", "key_weights", 16, {"mixed": 1}, "weigh_keys -> mix_values -> scale_values"),
        ("attention", "reciprocals", 4, {"key_weights": 1, "reciprocals": 1}, "weigh_keys"),
    ],
)
def test_an_undersized_channel_locks_up_stalling_pipelines_alone(kind, channel, depth, stages, waiting, request):
    """Flushing and free-running pipelines do not need the room."""
    generated = request.getfixturevalue(kind)
    assert depth < next(one.depth for one in generated.channels if one.name == channel)
    with pytest.raises(SimulationError, match=waiting) as error:
        simulate_timed(generated.files, pipeline_depth=MOST_STAGES, fifo_depths={channel: depth}, stages=stages)
    assert error.value.kind == "deadlock"
    for style in ("flp", "frp"):
        assert isinstance(generated.run(pipeline_style=style, fifo_depths={channel: depth}, stages=stages), int)


def random_stages(channels: list[Channel], seed: int) -> dict[str, int]:
    """Random stages in which each process writes its channels; a channel that is later in the code gets no earlier
    stage."""
    chance = random.Random(seed)
    stages: dict[str, int] = {}
    for process in dict.fromkeys(channel.producer for channel in channels):
        names = [channel.name for channel in channels if channel.producer == process]
        chosen = sorted(chance.choice([1, chance.randint(1, MOST_STAGES), MOST_STAGES]) for _ in names)
        stages |= dict(zip(names, chosen, strict=True))
    return stages


@pytest.mark.parametrize(
    "kind", ["attention", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("moe", "cached"))]
)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 40))])
def test_declared_channels_hold_wherever_words_leave(kind, seed, request):
    generated = request.getfixturevalue(kind)
    share = 1 if seed % 2 else 0.2
    assert isinstance(generated.run(stages=random_stages(generated.channels, seed), memory_share=share), int)
