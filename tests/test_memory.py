"""Memory of compiling: little more than one expert, for any number of experts and any format."""

from __future__ import annotations

import pathlib
import tracemalloc
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

from moec import targets
from moec.artifacts.writer import Context, write_artifact
from moec.compiling import compiler
from moec.ir.text import print_model
from moec.passes import pipeline

from .products import thinned

E, d, f = 24, 512, 256
FLOATS = 4 * 3 * d * f
"""Bytes of one expert in float32."""
FIXED = 4 << 20
MODEL = f"""<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
block (float[T,{d}] x, float[T,{E}] logits) => (float[T,{d}] y) {{
    y = moec.MoE <k = 2> (x, logits, , up, down)
}}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Write a model whose weights are in a file of their own."""
    folder = tmp_path_factory.mktemp("memory")
    proto = onnx.parser.parse_model(MODEL)
    random, offset = np.random.default_rng(0), 0
    with (folder / "weights.bin").open("wb") as file:
        for name, shape in {"up": (E, 2 * f, d), "down": (E, d, f)}.items():
            tensor = proto.graph.initializer.add(name=name, data_type=1, dims=shape, data_location=1)
            entries = {"location": "weights.bin", "offset": str(offset), "length": str(4 * int(np.prod(shape)))}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
            for _ in range(E):
                offset += file.write(random.standard_normal(shape[1:], np.float32).tobytes())
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def most_memory(work: Callable[[], object]) -> int:
    """Measure the peak of memory that numpy and Python allocated while ``work`` ran, beyond what they had before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@thinned(
    "passes", ["quantize-experts{format=int8}", "", "cast-weights{dtype=bf16}", "quantize-experts{format=mxfp4}"], 4
)
def test_no_step_holds_more_than_a_few_experts(path, tmp_path, passes):
    model = compiler.import_model(path)
    assert most_memory(lambda: pipeline.run(model, pipeline.parse(passes))) < 2 * FLOATS + FIXED
    assert most_memory(lambda: print_model(model)) < 2 * FLOATS + FIXED
    program = targets.get("cpu").compile(model)
    context = Context("0", None, [], {}, {}, [], [], [], [], [], [], [], [], {})
    assert most_memory(lambda: write_artifact(tmp_path / "a.moec", program, context)) < 2 * FLOATS + FIXED
    assert E * FLOATS > 5 * (2 * FLOATS + FIXED)  # otherwise the test would prove nothing
