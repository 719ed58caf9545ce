"""C libraries in C++ programs: types of all widths, no and many rows, libraries that are opened twice."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.dtypes import dtype_of

from .building import SANITIZERS, built

MIXED = """<ir_version: 10, opset_import: ["" : 24]>
mixed (bfloat16[T,3] b, float16[T] h, int64[T] i, bool[T] p, double[T] d, uint8[T,2] u, int8[T] s)
    => (bfloat16[T,3] bb, float16[T] hh, int64[T] ii, bool[T] pp, double[T] dd, uint8[T,2] uu, int8[T] ss) {
    bb = Add (b, b)  hh = Mul (h, h)  ii = Sub (i, i)  pp = Not (p)  dd = Neg (d)  uu = Max (u, u)  ss = Abs (s)
}"""
PROGRAM = r"""
#include "mixed.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <thread>
#include <vector>

using Bytes = std::vector<unsigned char>;

static size_t bytes_of(const moec_spec &spec, int64_t rows) {
    size_t bytes = moec_type_size(spec.type) * static_cast<size_t>(rows);
    for (int axis = 1; axis < spec.rank; axis++) bytes *= static_cast<size_t>(spec.sizes[axis]);
    return bytes;
}

/* Run on rows of bytes that repeat `pattern`, and return all outputs. */
template <typename Run> static Bytes computed(Run run, moec_model *model, int64_t rows, const Bytes &pattern) {
    size_t count = 0;
    const moec_spec *specs = moec_inputs(&mixed_program, &count);
    std::vector<Bytes> memory(count);
    std::vector<moec_tensor> in(count), out(count);
    Bytes all;
    for (size_t at = 0; at < count; at++) {
        memory[at].resize(bytes_of(specs[at], rows));
        for (size_t byte = 0; byte < memory[at].size(); byte++) {
            unsigned char value = pattern[byte % pattern.size()];
            memory[at][byte] = specs[at].type == MOEC_BOOL ? value & 1 : value;
        }
        in[at].data = memory[at].data(), in[at].bytes = memory[at].size();
        in[at].type = specs[at].type, in[at].rank = specs[at].rank;
        for (int axis = 0; axis < specs[at].rank; axis++) in[at].shape[axis] = axis ? specs[at].sizes[axis] : rows;
    }
    if (run(model, in.data(), count, out.data(), count) != MOEC_OK) std::exit(3);
    for (moec_tensor &tensor : out) {
        const unsigned char *data = static_cast<unsigned char *>(tensor.data);
        all.insert(all.end(), data, data + tensor.bytes);
        moec_release(&tensor);
    }
    return all;
}

/* The same by a library that is opened, twice at the same place and once at another. */
static int opened(char **places, const char *weights, const Bytes &expected, const Bytes &pattern) {
    for (int turn = 0; turn < 3; turn++) {
        void *library = dlopen(places[turn / 2], RTLD_NOW | RTLD_LOCAL), *again = dlopen(places[0], RTLD_NOW);
        if (library == nullptr || again == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 4;
        auto program = static_cast<const moec_program *>(dlsym(library, "mixed_program"));
        auto load = reinterpret_cast<decltype(&moec_load)>(dlsym(library, "moec_load"));
        auto run = reinterpret_cast<decltype(&moec_run)>(dlsym(library, "moec_run"));
        auto free_model = reinterpret_cast<decltype(&moec_free)>(dlsym(library, "moec_free"));
        moec_model *model = nullptr;
        if (program == &mixed_program || load(program, weights, nullptr, &model) != MOEC_OK) return 5;
        if (computed(run, model, 7, pattern) != expected) return 6;
        free_model(model);
        dlclose(again), dlclose(library);
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    Bytes pattern(7 * 56);
    if (std::fread(pattern.data(), 1, pattern.size(), stdin) != pattern.size()) return 2;
    moec_model *model = nullptr;
    if (moec_load(&mixed_program, arguments[1], nullptr, &model) != MOEC_OK) return 2;
    for (int64_t rows : {0, 1, 7, 200000}) {
        Bytes first = computed(moec_run, model, rows, pattern), other[4];
        std::vector<std::thread> threads;
        for (Bytes &result : other)
            threads.emplace_back([&] { result = computed(moec_run, model, rows, pattern); });
        for (std::thread &thread : threads) thread.join();
        for (Bytes &result : other)
            if (result != first) return 1;
        if (rows == 7) std::fwrite(first.data(), 1, first.size(), stdout);
    }
    Bytes expected = computed(moec_run, model, 7, pattern);
    moec_free(model);
    return opened(arguments + 2, arguments[1], expected, pattern);
}
"""


@pytest.mark.nightly
@pytest.mark.parametrize("options", [[], SANITIZERS["memory"], SANITIZERS["threads"]], ids=["plain", *SANITIZERS])
def test_a_program_in_cpp_with_the_static_library_and_with_opened_ones(tmp_path, options):
    """Its folder is read-only, as that of an installed library."""
    place = tmp_path / "mixed"
    moec.compile(onnx.parser.parse_model(MIXED), output=place, form="c")
    python = moec.load(place)
    opened = [place / "libmixed.so", shutil.copy(place / "libmixed.so", tmp_path / "elsewhere.so")]
    program = built(tmp_path, PROGRAM, place, compiler="g++", options=["-std=c++11", *options])
    place.chmod(0o555)
    pattern = np.random.default_rng(0).integers(0, 56, 7 * 56).astype(np.uint8).tobytes()
    ran = subprocess.run([program, place / "weights.bin", *opened], input=pattern, capture_output=True)
    place.chmod(0o755)
    assert (ran.returncode, ran.stderr.decode()) == (0, "")
    values = {}
    for spec in python.inputs:
        shape = (7, *spec.shape[1:])
        size = int(np.prod(shape)) * dtype_of(spec.dtype).itemsize
        content = np.frombuffer(pattern[:size], np.uint8)
        content = content & 1 if spec.dtype == "bool" else content
        values[spec.name] = content.view(dtype_of(spec.dtype)).reshape(shape)
    expected = python.run(values)
    assert ran.stdout == b"".join(np.ascontiguousarray(array).tobytes() for array in expected.values())
