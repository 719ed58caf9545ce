"""A design of three processes, for tests of the simulation and the linter: it doubles 16 numbers."""

from __future__ import annotations

LOAD = """\
void load(const int* in, hls::stream<int>& words) {
axi_load:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        words.write(in[i]);
    }
}
"""
TWICE = """\
void twice(hls::stream<int>& words, hls::stream<int>& doubled) {
twice_words:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        doubled.write(2 * words.read());
    }
}
"""
STORE = """\
void store(hls::stream<int>& doubled, int* out) {
axi_store:
    for (int i = 0; i < COUNT; i++) {
#pragma HLS PIPELINE II=1 style=stp
        out[i] = doubled.read();
    }
}
"""
CHANNELS = """\
    hls::stream<int, 2> words("words");
    hls::stream<int, 2> doubled("doubled");
"""
CALLS = """\
    load(in, words);
    twice(words, doubled);
    store(doubled, out);
"""
HEAD = """\
#include <hls_stream.h>

const int COUNT = 16;

"""
TOP = """\
extern "C" void top(const int* in, int* out) {
#pragma HLS INTERFACE m_axi port=in bundle=gmem_in offset=slave depth=COUNT latency=64
#pragma HLS INTERFACE m_axi port=out bundle=gmem_out offset=slave depth=COUNT latency=64
#pragma HLS INTERFACE s_axilite port=in
#pragma HLS INTERFACE s_axilite port=out
#pragma HLS DATAFLOW
"""
TESTBENCH = """\
#include <cstdio>

extern "C" void top(const int* in, int* out);

int main() {
    int in[16], out[16], wrong = 0;
    for (int i = 0; i < 16; i++) in[i] = i;
    for (int call = 0; call < 2; call++) {
        top(in, out);
        for (int i = 0; i < 16; i++) wrong += out[i] != 2 * i;
    }
    std::printf("%s: %d differences\\n", wrong ? "FAIL" : "PASS", wrong);
    return wrong != 0;
}
"""


def source(
    *, load: str = LOAD, twice: str = TWICE, store: str = STORE, channels: str = CHANNELS, calls: str = CALLS
) -> str:
    return f"{HEAD}{load}\n{twice}\n{store}\n{TOP}{channels}{calls}}}\n"


def project(text: str) -> dict[str, bytes]:
    """The files of a project with this source."""
    configuration = "[hls]\nsyn.top=top\nsyn.file=top.cpp\ntb.file=testbench.cpp\n"
    texts = {"top.cpp": text, "testbench.cpp": TESTBENCH, "hls_config.cfg": configuration}
    return {name: content.encode() for name, content in texts.items()}
