"""Each rule of the linter on variants of a design that break it; the design itself breaks none."""

from __future__ import annotations

import pytest

from moec.simulators.hls.cpp import Source

from ..small_design import CALLS, CHANNELS, LOAD, TWICE, project, source
from .linter import lint, lint_sources

PIPELINE = "#pragma HLS PIPELINE II=1 style=stp\n"
LOADER = LOAD.replace("axi_load", "load_more").replace("void load", "void load_more")


def found(text: str) -> list[tuple[str, str]]:
    """The line of each finding, and its rule."""
    lines = text.splitlines()
    findings = lint_sources([Source("top.cpp", text)])
    return [(lines[finding.line - 1].strip(), finding.rule) for finding in findings]


def with_pragma(pragma: str, declared: str = "") -> str:
    """The design with a pragma at the start of a process."""
    head = "& doubled) {\n"
    return source(twice=TWICE.replace(head, f"{head}{declared}\n{pragma}\n"))


def with_statement(statement: str) -> str:
    """The design with a statement added to a pipelined loop."""
    return source(twice=TWICE.replace(PIPELINE, PIPELINE + statement + "\n"))


def test_a_design_without_faults():
    assert lint(project(source())) == []


BOUND = "int a[4];\n#pragma HLS BIND_STORAGE variable=a type=ram_s2p impl=lutram"


@pytest.mark.parametrize(
    ("pragma", "declared", "rule"),
    [
        ("#pragma HLS ARRAY_PARTITON variable=a type=complete", BOUND, "known-pragmas"),
        ("#pragma HLS ARRAY_PARTITION variable=a type=compleet factor=2", BOUND, "known-pragmas"),
        ("#pragma HLS ARRAY_PARTITION variable=a type=complete +", "int a[4];", "known-pragmas"),
        ("#pragma HLS BIND_STORAGE variable=a type=ram_s2p impl=flash", "int a[4];", "known-pragmas"),
        ("#pragma HLS UNROLL", "", "placed-pragmas"),
        ("#pragma HLS ARRAY_PARTITION variable=b type=complete", BOUND, "declared-variables"),
        ("#pragma HLS ARRAY_PARTITION variable=a type=complete dim=2", BOUND, "possible-partitions"),
        ("#pragma HLS ARRAY_PARTITION variable=a type=cyclic", BOUND, "possible-partitions"),
        ("#pragma HLS DEPENDENCE variable=a type=inter dependent=false", BOUND, "justified-dependences"),
    ],
)
def test_rules_about_pragmas(pragma, declared, rule):
    assert found(with_pragma(pragma, declared)) == [(pragma, rule)]


@pytest.mark.parametrize(
    "pragma", ["ARRAY_PARTITION variable=a complete", "DEPENDENCE variable=a inter false", "AGGREGATE variable=a bit"]
)
def test_words_that_later_versions_may_not_know(pragma):
    """2020.2 accepts these positional words instead of the named options that replaced them. Pragmas must use words
    that all versions from the least one on accept."""
    line = f"#pragma HLS {pragma}"
    assert set(found(with_pragma(f"// it is so\n{line}", BOUND))) == {(line, "known-pragmas")}


@pytest.mark.parametrize(
    ("pragma", "declared"),
    [
        ("#pragma HLS ARRAY_PARTITION variable=a type=complete dim=0", "int a[4][2];"),
        ("#pragma hls array_partition variable=a type=cyclic factor=2 // two ports each", BOUND),
        ("// nobody else writes it\n#pragma HLS DEPENDENCE variable=a type=inter dependent=false", BOUND),
        ("#pragma HLS AGGREGATE variable=doubled compact=bit", ""),
    ],
)
def test_pragmas_that_are_right(pragma, declared):
    assert found(with_pragma(pragma, declared)) == []


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("int a[4];", False),
        ("static const int a[2][4] = { NUMBERS };", False),
        ("int a[2][4];\n#pragma HLS ARRAY_PARTITION variable=a type=complete dim=1", False),
        ("int a[4];\n#pragma HLS ARRAY_PARTITION variable=a type=cyclic factor=2", False),
        ("int a[4];\n#pragma HLS ARRAY_PARTITION variable=a", True),
        ("int a[2][4];\n#pragma HLS ARRAY_PARTITION variable=a type=complete dim=0", True),
        (BOUND, True),
        ("int a = 1;", True),
    ],
)
def test_arrays_say_what_they_are_built_of(declared, says):
    assert [rule for _, rule in found(with_pragma("", declared))] == ([] if says else ["bound-storage"])


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        (source(twice="#pragma HLS INLINE\n" + TWICE), "#pragma HLS INLINE", "pragmas-of-functions"),
        (source(twice=TWICE.replace("II=1", "II=0")), "#pragma HLS PIPELINE II=0 style=stp", "initiation-intervals"),
        (source(twice=TWICE.replace(" II=1", "")), "#pragma HLS PIPELINE style=stp", "initiation-intervals"),
        (source(twice=TWICE.replace(" style=stp", "")), "#pragma HLS PIPELINE II=1", "pinned-styles"),
        (
            source(twice=TWICE.replace("style=stp", "style=fast")),
            "#pragma HLS PIPELINE II=1 style=fast",
            "known-pragmas",
        ),
        (source(twice=TWICE.replace(PIPELINE, "int a;\n" + PIPELINE)), PIPELINE.strip(), "placed-pragmas"),
        (source(twice=TWICE.replace(PIPELINE, "")), "twice_words:", "pipelined-loops"),
        (with_statement("for (int j = 0; j < 4; j++) {}"), "for (int j = 0; j < 4; j++) {}", "pipelined-loops"),
        (
            with_statement(f"for (int j = 0; j < 4; j++) {{\n{PIPELINE}}}"),
            "for (int j = 0; j < 4; j++) {",
            "pipelined-loops",
        ),
        (source(twice=TWICE.replace("i < COUNT", "i < int(count)")), "twice_words:", "trip-counts"),
        (
            with_statement("for (int j = 0; j < i; j++) {\n#pragma HLS UNROLL\n}"),
            "for (int j = 0; j < i; j++) {",
            "trip-counts",
        ),
        (with_statement("int a = i % 3;"), "int a = i % 3;", "cheap-divisions"),
        (with_statement("int a = COUNT / i;"), "int a = COUNT / i;", "cheap-divisions"),
        (with_statement("int a = i / (COUNT - 1);"), "int a = i / (COUNT - 1);", "cheap-divisions"),
        (
            source(load=LOAD.replace("words.write", "if (i % 2 == 0) words.write")),
            "if (i % 2 == 0) words.write(in[i]);",
            "unconditional-accesses",
        ),
        (
            source(
                load=LOAD.replace(
                    "words.write(in[i]);", "int word = 0;\nif (i < 4) {\nword = in[i];\n}\nwords.write(word);"
                )
            ),
            "word = in[i];",
            "unconditional-accesses",
        ),
    ],
)
def test_rules_about_loops(text, line, rule):
    assert found(text) == [(line, rule)]


UNROLLED = """\
for (int j = 0; j < COUNT; j++) {
#pragma HLS UNROLL
    for (int k = j; k < j + 2; k++) {
#pragma HLS UNROLL
    }
}
"""
UNUSED = """\
void unused(int a) {
    for (int i = 0; i < 4; i++) {
#pragma HLS PIPELINE II=1 style=stp
        a += i / C::UNKNOWN;
    }
}
"""
AT_RUN_TIME = TWICE.replace("i < COUNT", "i < count")


@pytest.mark.parametrize(
    "text",
    [
        source(twice=TWICE.replace("i < COUNT", "i < 2 * COUNT")),
        source(twice=AT_RUN_TIME.replace(PIPELINE, f"#pragma HLS LOOP_TRIPCOUNT max=4\n{PIPELINE}")),
        with_statement("int a = i % 4 + i / COUNT + i / (COUNT / 2) + i % (2 > 1 ? 8 : 3); // i / 3"),
        with_statement(UNROLLED),
        source(twice=UNUSED + TWICE),
        source(load=LOAD.replace("words.write(in[i]);", "const int word = in[i];\nif (i < COUNT) words.write(word);")),
        source(load=LOAD.replace("axi_load:", "if (in[0] < 0) return;\naxi_load:")),
        source(twice="int third(int a) {\n#pragma HLS INLINE\n    return a / 3;\n}\n" + TWICE),
    ],
)
def test_loops_that_are_right(text):
    assert found(text) == []


WORDS, DOUBLED = (f'hls::stream<int, 2> {name}("{name}");' for name in ("words", "doubled"))
MASTER = "#pragma HLS INTERFACE m_axi port=in bundle=gmem_in offset=slave depth=COUNT latency=64"
REGISTER = "#pragma HLS INTERFACE s_axilite port=out\n"
OUT_OF_ORDER = CALLS.replace("    store(doubled, out);\n", "").replace("    load", "    store(doubled, out);\n    load")


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        (source(calls=CALLS + "    int rest = load;\n"), "int rest = load;", "simple-regions"),
        (source(calls=CALLS.replace("twice(", "thrice(")), "thrice(words, doubled);", "simple-regions"),
        (source().replace('("words")', '("word")'), WORDS.replace('"words"', '"word"'), "named-channels"),
        (source().replace("2> words", "> words").replace(", >", ">"), WORDS.replace(", 2", ""), "named-channels"),
        (source(calls=CALLS + "    store(doubled, other);\n"), DOUBLED, "single-producer-and-consumer"),
        (source(calls=CALLS.replace("twice(words,", "twice(in,")), WORDS, "single-producer-and-consumer"),
        (source(calls=OUT_OF_ORDER), "store(doubled, out);", "single-producer-and-consumer"),
        (source().replace(" bundle=gmem_in", ""), MASTER.replace(" bundle=gmem_in", ""), "complete-interfaces"),
        (source().replace(REGISTER, ""), 'extern "C" void top(const int* in, int* out) {', "complete-interfaces"),
    ],
)
def test_rules_about_regions(text, line, rule):
    assert (line, rule) in found(text)


def test_what_processes_share():
    """A second loader reads the same port, or another port of the same bundle."""
    twice = TWICE.replace("& words,", "& words, hls::stream<int>& more,")
    shared = source(
        load=LOAD + LOADER,
        twice=twice.replace("words.read()", "words.read() + more.read()"),
        channels=CHANNELS + '    hls::stream<int, 2> more("more");\n',
        calls="    load_more(in, more);\n" + CALLS.replace("twice(words,", "twice(words, more,"),
    )
    assert found(shared) == [
        ("load(in, words);", rule) for rule in ("one-master-per-direction", "one-process-per-array")
    ]

    pragmas = f"{MASTER.replace('port=in', 'port=other')}\n#pragma HLS INTERFACE s_axilite port=other\n"
    of_a_bundle = (
        shared.replace("load_more(in,", "load_more(other,")
        .replace("top(const int* in", "top(const int* other, const int* in")
        .replace("#pragma HLS DATAFLOW\n", f"{pragmas}#pragma HLS DATAFLOW\n")
    )
    assert found(of_a_bundle) == [("load(in, words);", "one-master-per-direction")]
    assert found(of_a_bundle.replace("port=other bundle=gmem_in", "port=other bundle=gmem_other")) == []


def test_channels_that_helpers_use():
    """A process may read and write channels through functions that it calls."""
    passed_on = (
        TWICE.replace("void twice", "template <class T> inline void helper")
        .replace(
            "hls::stream<int>& words, hls::stream<int>& doubled", "int more, hls::stream<T>& from, hls::stream<T>& to"
        )
        .replace("words.read", "from.read")
        .replace("doubled.write", "to.write")
    )
    wrapper = (
        "void twice(hls::stream<int>& words, hls::stream<int>& doubled) { helper<int>(f(1, 2), words, doubled); }\n"
    )
    assert found(source(twice=passed_on + wrapper)) == []
    swapped = wrapper.replace("words, doubled);", "doubled, words);")
    assert len(found(source(twice=passed_on + swapped))) == 2


def test_findings_name_file_line_and_rule():
    text = source(twice=TWICE.replace("II=1", "II=0"))
    assert [str(finding) for finding in lint(project(text))] == [
        "top.cpp:16: initiation-intervals: pragma PIPELINE II=0 style=stp: expected II= and a whole number above 0"
    ]
