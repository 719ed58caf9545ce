"""Loops of C libraries: the bits of Python's, whatever ends them, and errors where they do not end."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import numpy as np
import onnx.parser
import pytest

import moec
from moec.artifacts.c_form import form
from moec.common import loop_steps
from moec.common.errors import InputError
from moec.compiling.compile_options import CompileOptions

from .building import SANITIZERS, built
from .library import INPUT, CError, CLibrary, same_bits

LOOPS = """<ir_version: 10, opset_import: ["" : 24]>
loops (float[B,3] x, int64 n, int64 m, bool go, float limit, float step, int64[K] ids, float[T,B,3] scanned)
    => (float[B,3] y, float[S,R,B,3] z, float[B,3] halved, float[C] halves, int64[L] grown, int64[M,2] ends,
        float[B,3] sum, float[B,T,3] sums) <
    bool yes = {1}, float[3] w = {1, 2, -1}, float[3,20] v = {VALUES}, float half = {0.5},
    int64[2] two = {0, -1}, int64[1] last = {-1}> {
    y, z = Loop (n, go, x) <body = outer (int64 i, bool c, float[B,3] a) => (bool d, float[B,3] b, float[R,B,3] u) {
        d = Identity (c)
        column = Unsqueeze (a, last)  wide = Mul (column, v)  start = ReduceSum <keepdims = 0> (wide, last)
        b, u = Loop (m, yes, start) <body = inner (int64 j, bool k, float[B,3] e) => (bool l, float[B,3] f,
                float[B,3] g) { l = Identity (k)  p = Mul (e, w)  f = Sub (p, x)  g = Mul (f, a) }> }>
    halved, halves = Loop (, yes, x) <body = halve (int64 i, bool c, float[B,3] a) => (bool d, float[B,3] b, float h) {
        b = Mul (a, step)  h = ReduceSum <keepdims = 0> (b)
        size = ReduceL1 <keepdims = 0> (b)  d = Greater (size, limit) }>
    grown, ends = Loop (n, yes, ids) <body = grow (int64 i, bool c, int64[P] a) => (bool d, int64[Q] b, int64[2] h) {
        d = Identity (c)  t = Gather (a, last)  s = Add (t, i)  b = Concat <axis = 0> (a, s)  h = Gather (b, two) }>
    zero = Sub (x, x)
    sum, sums = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1],
        scan_output_directions = [1],
        body = total (float[B,3] a, float[B,3] e) => (float[B,3] s, float[B,3] t) { s = Add (a, e)  t = Mul (s, half) }>
        (zero, scanned)
}""".replace("VALUES", ", ".join(str(at % 5 - 2) for at in range(60)))
EXACT = [(0, 2, True), (1, 0, True), (3, 2, True), (2, 1, False), (-1, 3, True)]
"""Counts of steps, and whether there is a first one."""


def values_for(n: int, m: int, go: bool, batch: int = 2, *, limit: float = 0.5, step: float = 0.5) -> dict:
    random = np.random.default_rng(n + 10 * m)
    return {
        "x": random.integers(-3, 4, (batch, 3)).astype(np.float32),
        "n": np.array(n),
        "m": np.array(m),
        "go": np.array(go),
        "limit": np.array(limit, np.float32),
        "step": np.array(step, np.float32),
        "ids": random.integers(0, 9, 3),
        "scanned": random.normal(size=(max(n, 0), batch, 3)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def loops(tmp_path_factory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("c") / "loops"
    moec.compile(onnx.parser.parse_model(LOOPS), output=place, form="c", passes="infer-shapes,prepare-loops")
    return place


@pytest.mark.parametrize("threads", [1, 2])
def test_results_have_the_bits_of_python(loops, threads):
    library, python = CLibrary(loops), moec.load(loops)
    with library.loaded(threads) as model:
        for counts in EXACT:
            for batch in (2, 0, 300):
                values = values_for(*counts, batch)
                found, expected = model.run(values), python.run(values)
                different = [name for name in expected if not same_bits(found[name], expected[name])]
                assert not different, (counts, batch)
        assert expected["z"].shape[0] == 0 and python.run(values_for(3, 2, True))["z"].shape == (3, 2, 2, 3)


def test_a_loop_that_does_not_end_is_an_error_behind_which_the_model_runs_on(loops):
    library, python = CLibrary(loops), moec.load(loops)
    good, endless = values_for(1, 1, True), values_for(1, 1, True, 1, limit=-1)
    with library.loaded(1) as model:
        before = model.run(good)
        message = rf"a loop goes on behind its step {loop_steps.MAXIMUM_STEPS}; expected it to end before"
        with pytest.raises(CError, match=message) as refused:
            model.run(endless)
        assert refused.value.number == INPUT
        assert all(same_bits(model.run(good)[name], before[name]) for name in before)
    assert all(same_bits(before[name], python.run(good)[name]) for name in before)


def test_limits_are_those_of_python():
    text = (pathlib.Path(form.__file__).parent / "library" / "moec_loop.c").read_text()
    limits = {name: 1 << int(bits) for name, bits in re.findall(r"define (MOST_\w+) .*\(int64_t\)1 << (\d+)", text)}
    assert limits == {
        "MOST_STEPS": loop_steps.MAXIMUM_STEPS,
        "MOST_GROWTH": loop_steps.MAXIMUM_GROWTH,
        "MOST_CARRIED": loop_steps.MAXIMUM_CARRIED,
    }


PROGRAM = r"""
#include "loops.h"
#include <stdio.h>
#include <string.h>

/* Read inputs, whose sizes are arguments, and write all outputs. */
int main(int count, char **arguments) {
    static char memory[8][4096];
    moec_tensor in[8] = {{0}}, out[8] = {{0}};
    moec_model *model;
    size_t inputs, outputs;
    const moec_spec *specs = moec_inputs(&loops_program, &inputs);
    moec_outputs(&loops_program, &outputs);
    if (count != 4 || inputs != 8 || outputs != 8) return 2;
    for (size_t at = 0; at < inputs; at++) {
        in[at] = (moec_tensor){.data = memory[at], .type = specs[at].type, .rank = specs[at].rank};
        size_t bytes = moec_type_size(in[at].type);
        for (int axis = 0; axis < in[at].rank; axis++) {
            const char *name = specs[at].size_names[axis];
            int size = name == NULL ? (int)specs[at].sizes[axis] : *name == 'B' ? 2 : *name == 'K' ? 3 : -1;
            if (size < 0 && sscanf(arguments[2], "%d", &size) != 1) return 2;
            in[at].shape[axis] = size, bytes *= (size_t)size;
        }
        if (bytes > sizeof memory[at] || fread(memory[at], 1, bytes, stdin) != bytes) return 2;
    }
    if (moec_load(&loops_program, arguments[1], NULL, &model)) return 2;
    for (int time = 0; time < 2; time++) {
        moec_error error = moec_run(model, in, inputs, out, outputs);
        if (error != MOEC_OK) fprintf(stderr, "%s: %s\n", moec_error_name(error), moec_last_error());
        for (size_t at = 0; at < outputs; at++) {
            if (error == MOEC_OK && time == 1) fwrite(out[at].data, 1, out[at].bytes, stdout);
            moec_release(out + at);
        }
    }
    moec_free(model);
    return strcmp(arguments[3], "quiet") != 0;
}
"""


def said_by(command: list, values: dict[str, np.ndarray]) -> tuple[bytes, str]:
    """Outputs of :data:`PROGRAM` and its messages."""
    given = b"".join(np.ascontiguousarray(array).tobytes() for array in values.values())
    ran = subprocess.run([*map(str, command), str(len(values["scanned"])), "quiet"], input=given, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout, ran.stderr.decode()


@pytest.mark.nightly
def test_loops_use_no_memory_that_is_not_theirs(loops, tmp_path):
    """All cases with sanitizers, errors too, with limits that are reached at once."""
    python, limits = moec.load(loops), ["-DMOST_STEPS=100", "-DMOST_GROWTH=700.0"]
    program = built(tmp_path, PROGRAM, loops, options=[*SANITIZERS["memory"], *limits], from_sources=True)
    for counts in EXACT:
        values = values_for(*counts)
        expected = python.run(values)
        assert said_by([program, loops / "weights.bin"], values) == (
            b"".join(np.ascontiguousarray(array).tobytes() for array in expected.values()),
            "",
        )
    for values, message in (
        (values_for(1, 1, True, limit=-1), "goes on behind its step 100"),
        (values_for(1, 1, True, limit=-1, step=float("nan")), None),
        (values_for(99, 1, True), "holds .* bytes in its step"),
    ):
        said = said_by([program, loops / "weights.bin"], values)[1]
        assert re.match(f"MOEC_ERROR_INPUT: a loop {message}", said) if message else said == ""


ARM = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objcopy", "qemu-aarch64")


@pytest.mark.nightly
@pytest.mark.skipif(any(shutil.which(tool) is None for tool in ARM), reason=f"needs {', '.join(ARM)}")
def test_loops_for_aarch64_compute_the_same_where_they_can_run(loops, tmp_path):
    """Numbers are whole, or halves, so that all processors compute the same."""
    place, options = (
        tmp_path / "loops",
        CompileOptions(target="cpu:neon", form="c", passes="infer-shapes,prepare-loops"),
    )
    moec.compiling.compiler.write(onnx.parser.parse_model(LOOPS), place, options)
    program = built(tmp_path, PROGRAM, place, compiler=ARM[0], options=["-static"])
    for counts in EXACT:
        values = values_for(*counts)
        values["scanned"] = np.round(values["scanned"] * 4)
        expected = moec.load(loops).run(values)
        outputs = b"".join(np.ascontiguousarray(array).tobytes() for array in expected.values())
        assert said_by([ARM[2], program, place / "weights.bin"], values) == (outputs, "")


UNEVEN = """<ir_version: 10, opset_import: ["" : 24]>
uneven (float[N] x, int64 n) => (float[S,M] z) <bool yes = {1}> {
    y, z = Loop (n, yes, x) <body = step (int64 i, bool c, float[P] a) => (bool d, float[Q] b, float[Q] h) {
        d = Identity (c)  b = Concat <axis = 0> (a, a)  h = Neg (b) }> }"""


@pytest.mark.nightly
def test_slices_of_different_sizes_are_an_error(tmp_path):
    moec.compile(onnx.parser.parse_model(UNEVEN), output=tmp_path / "uneven", form="c")
    python, library = moec.load(tmp_path / "uneven"), CLibrary(tmp_path / "uneven")
    values, message = {"x": np.ones(3, np.float32)}, r"make slices of sizes \[6\] and \[12\]; expected equal sizes"
    with library.loaded() as model:
        for count in (0, 1):
            expected = python.run({**values, "n": np.array(count)})["z"]
            assert same_bits(model.run({**values, "n": np.array(count)})["z"], expected)
        with pytest.raises(CError, match=message) as refused:
            model.run({**values, "n": np.array(2)})
    assert refused.value.number == INPUT
    with pytest.raises(InputError, match=message):
        python.run({**values, "n": np.array(2)})
