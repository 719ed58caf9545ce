"""Runs of C libraries: the bits of Python's, for every number of threads, whatever sizes and types."""

from __future__ import annotations

import pathlib
import subprocess

import numpy as np
import onnx.parser
import pytest

import moec

from .library import CLibrary, same_bits

RANDOM = np.random.default_rng(0)
LAYER = """<ir_version: 10, opset_import: ["" : 21, "moec" : 1]>
layer (float[6,16] x, float[16,4] router, float[4,8,16] up, float[4,16,8] down,
        float[4,8,16] gate) => (float[6,16] y) {
    logits = MatMul (x, router)
    y = moec.MoE <k = 2, gate_layout = "separate"> (x, logits, , up, down, gate)
}"""
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
    folder = tmp_path_factory.mktemp("c") / "layer"
    proto = onnx.parser.parse_model(LAYER)
    for value in list(proto.graph.input)[1:]:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(RANDOM.normal(size=shape).astype("f"), value.name))
        proto.graph.input.remove(value)
    moec.compile(proto, output=folder, form="c", passes="O0")
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


@pytest.mark.parametrize("threads", [1, 2])
def test_every_number_of_threads_computes_the_same(layer, threads):
    x = RANDOM.normal(size=(6, 16)).astype(np.float32)
    with CLibrary(layer).loaded(threads) as model:
        assert same_bits(model.run({"x": x})["y"], moec.load(layer, threads=1).run({"x": x})["y"])
