"""Runs of C libraries: the bits of Python's, for every number of threads, whatever sizes and types."""

from __future__ import annotations

import pathlib
import platform
import re
import shutil
import subprocess

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.dtypes import dtype_of
from moec.common.errors import InputError

from .building import run
from .layers import layer_model
from .library import FILE, INPUT, CError, CLibrary, same_bits

RANDOM = np.random.default_rng(0)
PROGRAM = r"""
#include "layer.h"
#include <stdio.h>

int main(int count, char **arguments) {
    static float x[6 * 16];
    moec_model *model;
    moec_tensor in = {.data = x, .type = MOEC_FLOAT32, .rank = 2, .shape = {6, 16}}, out = {0};
    if (count != 2 || fread(x, sizeof x, 1, stdin) != 1) return 2;
    if (moec_load(&layer_program, arguments[1], NULL, &model) || moec_run(model, &in, 1, &out, 1)) {
        fprintf(stderr, "%s\n", moec_last_error());
        return 1;
    }
    fwrite(out.data, 1, out.bytes, stdout);
    moec_release(&out);
    moec_free(model);
    return 0;
}
"""


@pytest.fixture(scope="module")
def layer(tmp_path_factory) -> pathlib.Path:
    """A layer of four experts for six rows."""
    return compiled_layer(tmp_path_factory.mktemp("c") / "layer")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> pathlib.Path:
    """Another layer, of other weights."""
    return compiled_layer(tmp_path_factory.mktemp("c") / "other", seed=1)


def compiled_layer(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    moec.compile(layer_model(seed), output=folder, form="c", passes="O0")
    return folder


@pytest.mark.parametrize("library", ["-llayer", "-l:liblayer.a"])
def test_a_program_in_c_computes_the_bits_of_python(layer, tmp_path, library):
    (tmp_path / "main.c").write_text(PROGRAM)
    paths = [f"-I{layer}", f"-L{layer}", f"-Wl,-rpath,{layer}"]
    command = ["cc", "-Wall", "-Wextra", "-Werror", "main.c", "-o", "main", *paths, library, "-lm", "-lpthread"]
    subprocess.run(command, cwd=tmp_path, check=True)
    x = RANDOM.normal(size=(6, 16)).astype(np.float32)
    ran = subprocess.run([tmp_path / "main", layer / "weights.bin"], input=x.tobytes(), capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert same_bits(np.frombuffer(ran.stdout, np.float32).reshape(6, 16), moec.load(layer).run({"x": x})["y"])
    missing = subprocess.run([tmp_path / "main", "nothing.bin"], input=x.tobytes(), capture_output=True, text=False)
    assert (missing.returncode, missing.stderr) == (1, b"nothing.bin: cannot be opened: No such file or directory\n")


TWO = r"""
#include "layer.h"
#include "other.h"
#include <stdio.h>
#include <string.h>

static int computed(const moec_program *program, const char *weights, float *y) {
    float x[6 * 16];
    moec_model *model;
    moec_tensor in = {.data = x, .type = MOEC_FLOAT32, .rank = 2, .shape = {6, 16}};
    moec_tensor out = {.data = y, .bytes = 6 * 16 * sizeof(float)};
    for (int at = 0; at < 6 * 16; at++) x[at] = (float)(at % 7) - 3;
    int failed = moec_load(program, weights, NULL, &model) != MOEC_OK || moec_run(model, &in, 1, &out, 1) != MOEC_OK;
    moec_free(model);
    return !failed;
}

int main(int count, char **arguments) {
    float y[2][6 * 16];
    if (count != 3 || !computed(&layer_program, arguments[1], y[0])) return 1;
    if (!computed(&other_program, arguments[2], y[1])) return 2;
    fwrite(y, sizeof y, 1, stdout);
    return strcmp(moec_name(&layer_program), "layer") || strcmp(moec_name(&other_program), "other");
}
"""


@pytest.mark.parametrize("libraries", [["-llayer", "-lother"], ["-l:liblayer.a", "-l:libother.a"]])
def test_two_libraries_with_kernels_of_equal_names_in_one_process(layer, other, tmp_path, libraries):
    (tmp_path / "main.c").write_text(TWO)
    paths = [option for place in (layer, other) for option in (f"-I{place}", f"-L{place}", f"-Wl,-rpath,{place}")]
    run(["cc", "-Wall", "-Wextra", "-Werror", tmp_path / "main.c", "-o", tmp_path / "main", *paths, *libraries, "-lm"])
    places = [layer / "weights.bin", other / "weights.bin"]
    said = subprocess.run([tmp_path / "main", *places], capture_output=True, check=True).stdout
    x = (np.arange(6 * 16) % 7 - 3).astype(np.float32).reshape(6, 16)
    expected = [moec.load(place).run({"x": x})["y"] for place in (layer, other)]
    assert not np.array_equal(*expected)
    assert same_bits(np.frombuffer(said, np.float32).reshape(2, 6, 16), np.stack(expected))


def test_libraries_show_the_calls_and_the_program_alone(layer):
    shown = [line.split()[2] for line in run(["nm", "-D", "--defined-only", layer / "liblayer.so"]).splitlines()]
    assert {name for name in shown if not name.startswith("moec_")} == {"layer_program"}
    declared = re.findall(r"\b(moec_\w+)\(", (layer / "moec.h").read_text())
    assert {name for name in shown if name.startswith("moec_")} == set(declared)
    members = run(["nm", "-g", "--defined-only", layer / "liblayer.a"]).partition("layer.o:\n")[2].partition("\n\n")[0]
    assert [line.split()[2] for line in members.splitlines()] == ["layer_program"]


@pytest.mark.nightly
def test_the_same_model_makes_the_same_bytes(layer, tmp_path):
    again = compiled_layer(tmp_path / "layer")
    files = [path.relative_to(layer) for path in layer.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [str(file) for file in files if (layer / file).read_bytes() != (again / file).read_bytes()] == []


VARIOUS = """<ir_version: 10, opset_import: ["" : 24]>
various (float[N,M] x, float s, int64[N] i, bool[K] b, float16[K] h, uint8[P,2] u)
    => (float[N,M] y, int64[2,F] nonzero, float[N,M] same, float[Q] largest, float[L] kept, float table, bool[K] c,
        float[R,W] tall, float16[K] g, int64[N] j, uint8[A] v) <
    float table = {7.5}, int64[1] k = {3}, int64[1] one = {-1}, int64[2] turned = {-1, 2}, int64[1] first = {0},
    int64 step = {-4}> {
    y = Mul (x, s)
    nonzero = NonZero (y)
    same = Identity (x)
    flat = Reshape (x, one)
    largest, places = TopK <axis = 0> (flat, k)
    kept = Compress (flat, b)
    c = Not (b)
    tall = Reshape (x, turned)
    g = Add (h, h)
    j = Div (i, step)
    v = Reshape (u, one)
}"""


@pytest.fixture(scope="module")
def various(tmp_path_factory) -> tuple[CLibrary, moec.CompiledModel]:
    """A graph with scalars, many types, sizes that data decide, and an input that is an output."""
    place = tmp_path_factory.mktemp("c") / "various"
    moec.compile(onnx.parser.parse_model(VARIOUS), output=place, form="c")
    return CLibrary(place), moec.load(place)


def values_for(n: int, m: int, k: int, p: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(n + 10 * m)
    return {
        "x": random.integers(-2, 3, (n, m)).astype(np.float32),
        "s": np.array(0.5, np.float32),
        "i": random.integers(-9, 9, n),
        "b": random.integers(0, 2, k).astype(bool),
        "h": random.normal(size=k).astype(np.float16),
        "u": random.integers(0, 256, (p, 2)).astype(np.uint8),
    }


@pytest.mark.parametrize("sizes", [(2, 4, 8, 1), (5, 6, 3, 0), (1, 4, 0, 3), (40, 50, 1999, 7)])
def test_types_scalars_and_sizes_that_data_decide(various, sizes):
    library, python = various
    values = values_for(*sizes)
    expected = python.run(values)
    with library.loaded() as model:
        for found in (model.run(values), model.run({name: misplaced(array) for name, array in values.items()})):
            assert all(same_bits(found[name], expected[name]) for name in expected)


def misplaced(array: np.ndarray) -> np.ndarray:
    """The array at an address that is no multiple of 16."""
    memory = np.empty(array.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16 + array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), (1, 3, 1, 1), (0, 4, 0, 0)])
def test_sizes_that_do_not_fit_are_errors_on_both_sides(various, sizes):
    """Too few elements for TopK, and an odd number for a Reshape."""
    library, python = various
    values = values_for(*sizes)
    with pytest.raises(InputError):
        python.run(values)
    with library.loaded() as model, pytest.raises(CError, match=r"expected|cannot run") as refused:
        model.run(values)
    assert refused.value.number == INPUT


def test_a_file_of_weights_that_is_cut_between_runs_is_an_error(layer, tmp_path):
    weights = pathlib.Path(shutil.copy(layer / "weights.bin", tmp_path))
    x = np.ones((6, 16), np.float32)
    with CLibrary(layer).loaded(weights=weights) as model:
        model.run({"x": x})
        weights.write_bytes(b"")
        with pytest.raises(CError, match="the file of the weights of layer was cut while it was in use") as refused:
            model.run({"x": x})
    assert refused.value.number == FILE


def test_names_of_any_kind(tmp_path):
    """Names that C has other uses for, that would end a comment or a string, and that are no identifiers."""
    sizes, odd = ["int", "T", "min", "a b", "call", "größe"], 'x"*/ \\ ??/'
    value = onnx.helper.make_tensor_value_info
    inputs = [value(f"{odd}{size}", onnx.TensorProto.FLOAT, [size, 3]) for size in sizes]
    nodes = [onnx.helper.make_node("Concat", [each.name for each in inputs], ["m1"], axis=0, name="return */")]
    nodes.append(onnx.helper.make_node("Neg", ["m1"], [odd]))
    constant = onnx.numpy_helper.from_array(np.ones((1, 3), np.float32), "weights")
    nodes.append(onnx.helper.make_node("Add", [odd, "weights"], ["run"]))
    outputs = [value(name, onnx.TensorProto.FLOAT, ["all of it", 3]) for name in ("run", odd)]
    graph = onnx.helper.make_graph(nodes, "main", inputs, outputs, [constant])
    opset = [onnx.helper.make_opsetid("", 24)]
    moec.compile(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), output=tmp_path / "int", form="c")
    values = {each.name: np.full((at, 3), at, np.float32) for at, each in enumerate(inputs)}
    library = CLibrary(tmp_path / "int")
    assert set(library.inputs) == values.keys()
    with library.loaded() as model:
        found, expected = model.run(values), moec.load(tmp_path / "int").run(values)
    assert all(same_bits(found[name], expected[name]) for name in expected)
    (tmp_path / "main.c").write_text('#include "int.h"\nconst moec_program *program = &int_program;\n')
    for compiler, standard in (("cc", "c99"), ("g++", "c++11")):
        kind = ["-x", "c++"] if compiler == "g++" else []
        warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-std={standard}"]
        run([compiler, *warnings, "-fsyntax-only", f"-I{tmp_path / 'int'}", *kind, tmp_path / "main.c"])


def test_guards_are_checked_with_their_text(tmp_path):
    """Sizes that the frontend found limits of, and one that is made of others."""
    text = """<ir_version: 10, opset_import: ["" : 24]> g (float[S,4] x, float[T,4] z) => (float[3,4] y)
        <int64[1] k = {3}> { y, places = TopK <axis = 0> (x, k) }"""
    moec.compile(onnx.parser.parse_model(text), output=tmp_path / "guarded", form="c")
    python, library = moec.load(tmp_path / "guarded"), CLibrary(tmp_path / "guarded")
    assert python.guards == ["3 <= S"]
    values = {"x": RANDOM.normal(size=(3, 4)).astype("f"), "z": np.zeros((0, 4), "f")}
    with library.loaded() as model:
        assert same_bits(model.run(values)["y"], python.run(values)["y"])
        with pytest.raises(CError, match="the model was exported for sizes with 3 <= S only") as refused:
            model.run({**values, "x": values["x"][:2]})
    assert refused.value.number == INPUT


@pytest.mark.parametrize("threads", [1, 2])
def test_every_number_of_threads_computes_the_same(layer, threads):
    x = RANDOM.normal(size=(6, 16)).astype(np.float32)
    with CLibrary(layer).loaded(threads) as model:
        assert same_bits(model.run({"x": x})["y"], moec.load(layer, threads=1).run({"x": x})["y"])


NUMBERS = r"""
#include "moec_internal.h"
#include <stdio.h>

static const moec_program other = {.abi = MOEC_ABI + 1, .name = "other"};
static const char *const features[] = {"avx9000"};
static const moec_program newer = {.abi = MOEC_ABI, .name = "newer", .feature_count = 1, .features = features};

int main(void) {
    static float numbers[1 << 16];
    static uint16_t halves[1 << 16];
    moec_model *model;
    size_t count = fread(numbers, sizeof *numbers, 1 << 16, stdin);
    for (moec_type type = MOEC_FLOAT16; type <= MOEC_BFLOAT16; type++) {
        moec_convert(type, halves, MOEC_FLOAT32, numbers, count);
        fwrite(halves, sizeof *halves, count, stdout);
    }
    for (int at = 0; at < 1 << 16; at++) halves[at] = (uint16_t)at;
    for (moec_type type = MOEC_FLOAT16; type <= MOEC_BFLOAT16; type++) {
        moec_convert(MOEC_FLOAT32, numbers, type, halves, 1 << 16);
        fwrite(numbers, sizeof *numbers, 1 << 16, stdout);
    }
    moec_error error = moec_load(&other, NULL, NULL, &model);
    fprintf(stderr, "%s: %s\n", moec_error_name(error), moec_last_error());
    error = moec_load(&newer, NULL, NULL, &model);
    fprintf(stderr, "%s: %s\n", moec_error_name(error), moec_last_error());
    return 0;
}
"""


def test_conversions_are_those_of_numpy_and_programs_that_cannot_run_here_are_refused(layer, tmp_path):
    (tmp_path / "main.c").write_text(NUMBERS)
    paths = [f"-I{layer}", f"-I{layer / 'src' / 'c'}", tmp_path / "main.c", layer / "liblayer.a"]
    run(["cc", *paths, "-lm", "-lpthread", "-o", tmp_path / "main"])
    random = np.random.default_rng(0)
    edges = np.array([0, 65504, 65519.99, 65520, 6e-8, 2.98e-8, 2.99e-8, 6.1e-5, 3.4e38, np.inf, np.nan], np.float32)
    bits = random.integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32)
    halves = np.arange(0, 0x7C00, 4, dtype=np.uint16).view(np.float16).astype(np.float32)
    numbers = np.concatenate([edges, -edges, bits[~np.isnan(bits)], halves * np.float32(1 + 2**-11)])
    ran = subprocess.run([tmp_path / "main"], input=numbers.tobytes(), capture_output=True, check=True)
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        narrow = [numbers.astype(dtype_of(name)) for name in ("float16", "bfloat16")]
        wide = [every.view(dtype_of(name)).astype(np.float32) for name in ("float16", "bfloat16")]
    assert ran.stdout == b"".join(array.tobytes() for array in (*narrow, *wide))
    mismatch, lacking = ran.stderr.decode().splitlines()
    assert mismatch.startswith("MOEC_ERROR_ARGUMENT: the program's library has version 3; expected 2")
    if platform.machine() == "x86_64":
        assert lacking.startswith("MOEC_ERROR_MACHINE: newer was compiled for a processor with avx9000, which this one")
