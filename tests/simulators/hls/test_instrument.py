"""The instrumented copy for the timed simulation, and code that it refuses because it cannot count its cycles."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.simulators.hls.cpp import Source
from moec.simulators.hls.instrument import instrument

from ...targets.hls.small_design import CALLS, CHANNELS, LOAD, TWICE, source

PIPELINE = "#pragma HLS PIPELINE II=1 style=stp\n"
CLAIM = "#pragma HLS DEPENDENCE variable=a"


def instrumented(text: str) -> str:
    return instrument(Source("top.cpp", text))


def test_lines_stay_where_they_are():
    text = source()
    name, *lines = instrumented(text).splitlines()
    assert name == '#line 1 "top.cpp"'
    changed = [
        (before.strip(), after.strip())
        for before, after in zip(text.splitlines(), lines, strict=True)
        if before != after
    ]
    region = '::moec_simulation::Region moec_region("top"); moec_region.memory("gmem_in", "in", in, COUNT); '
    loop = "for (::moec_simulation::Loop moec_loop(::moec_simulation::Loop::{}); moec_loop.enters();)"
    tick = "::moec_simulation::tick(::moec_simulation::Style::stp, 1{});"
    assert changed == [
        ("axi_load:", f"{loop.format('uses_memory')} axi_load:"),
        (PIPELINE.strip(), tick.format(", words")),
        ("words.write(in[i]);", "words.write(::moec_simulation::memory(in)[i]);"),
        ("twice_words:", f"{loop.format('computes')} twice_words:"),
        (PIPELINE.strip(), tick.format(", doubled")),
        ("axi_store:", f"{loop.format('uses_memory')} axi_store:"),
        (PIPELINE.strip(), tick.format("")),
        ("out[i] = doubled.read();", "::moec_simulation::memory(out)[i] = doubled.read();"),
        ("#pragma HLS DATAFLOW", region + 'moec_region.memory("gmem_out", "out", out, COUNT);'),
        ("load(in, words);", 'moec_region.add("load", "in words", [&] { load(in, words); });'),
        ("twice(words, doubled);", 'moec_region.add("twice", "words doubled", [&] { twice(words, doubled); });'),
        ("store(doubled, out);", 'moec_region.add("store", "doubled out", [&] { store(doubled, out); });'),
        ("}", "moec_region.run(); }"),
    ]


def test_comments_and_strings_are_no_code():
    text = source(twice="// in[i] { #pragma HLS PIPELINE\n/* } */\n" + TWICE)
    assert instrumented(text).count("::tick(") == 3


@pytest.mark.parametrize(("declared", "style"), [(" style=frp", "frp"), (" style=flp", "flp"), ("", "stp")])
def test_a_pipeline_has_the_style_that_it_declares_or_else_that_of_the_tools(declared, style):
    text = instrumented(source(twice=TWICE.replace(" style=stp", declared)))
    assert f"::tick(::moec_simulation::Style::{style}, 1, doubled);" in text


def test_loops_that_are_flattened_share_their_claims():
    """A claim also covers the loops around that hold nothing else; another statement ends the nest."""
    claim = "// checked\n#pragma HLS DEPENDENCE variable=sums type=inter dependent=false\n"
    inner = "inner:\n    for (int j = 0; j < 4; j++) {\n" + PIPELINE + claim + "sums[i] += j; }"
    flat = f"void f(int sums[4]) {{\nouter:\n for (int i = 0; i < 4; i++) {{\n{inner}\n}} }}"
    guard = "for (::moec_simulation::Loop moec_loop(::moec_simulation::Loop::computes); moec_loop.enters();) "
    assert guard + "outer:" in instrumented(flat)
    assert '::moec_simulation::independent("sums", sums, 0);' in instrumented(flat)
    assert guard + "inner:" in instrumented(flat.replace(inner, "sums[i] = 0;\n" + inner))


def test_a_depth_that_a_pragma_sets():
    text = source(channels=CHANNELS + "#pragma HLS STREAM variable=words depth=9\n")
    assert 'declare(words, "words", 9);' in instrumented(text)


def pipelined_with(more: str) -> str:
    """The design with text added after the pragma of a pipelined loop."""
    return source(twice=TWICE.replace(PIPELINE, PIPELINE + more))


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (source(twice=TWICE.replace(PIPELINE, "")), "twice_words", "a loop that is neither pipelined nor unrolled"),
        (source(twice=TWICE.replace(PIPELINE, "int x;\n" + PIPELINE)), PIPELINE, "pragma PIPELINE behind a statement"),
        (source(twice=TWICE.replace("twice_words:", PIPELINE)), PIPELINE, "expected it in a loop"),
        (pipelined_with(PIPELINE), PIPELINE, "two pragmas PIPELINE"),
        (source(twice=TWICE.replace("style=stp", "style=fast")), "style=fast", "expected one of stp, frp, flp"),
        (pipelined_with("#pragma HLS UNROLL factor=2\n"), PIPELINE, "partly unrolled"),
        (pipelined_with(f"for (;;) {{\n{PIPELINE}}}"), PIPELINE, "a pipelined loop inside this one"),
        (pipelined_with("#pragma HLS OCCURRENCE cycle=2\n"), "OCCURRENCE", "the simulation knows AGGREGATE"),
        (pipelined_with(f"{CLAIM} type=intra\n"), CLAIM, "the simulation checks type=inter"),
        (pipelined_with(f"{CLAIM} type=inter\n"), CLAIM, "expected dependent=false or distance="),
        (source(load=LOAD.replace("axi_load", "load_words")), "in[i]", "accessed outside of a loop whose label starts"),
        (source(load=LOAD.replace("in[i]", "*(in + i)")), "words.write(", "pointer in is used otherwise"),
        (source(calls=CALLS + "    int rest = 0;\n"), "int rest", "expected only calls of processes"),
        (source(calls=CALLS + "    if (in) store(doubled, out);\n"), "if (in)", "expected only calls of processes"),
        (source().replace(" depth=COUNT", ""), "#pragma HLS INTERFACE", "expected port=, bundle= and depth="),
        (source(channels=f"{CHANNELS}#pragma HLS STREAM variable=words\n"), "STREAM", "expected variable=, depth="),
        (source(twice=TWICE.replace("2 *", "(2 *")), "(2 *", "expected ')'"),
    ],
)
def test_what_is_not_understood_is_an_error(text, place, message):
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if place.strip() in line]
    with pytest.raises(MoecError, match=r"^top\.cpp:\d+: ") as caught:
        instrumented(text)
    assert message in str(caught.value)
    assert int(str(caught.value).split(":")[1]) in lines
