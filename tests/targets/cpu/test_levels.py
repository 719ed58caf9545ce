"""Products of weights with scales of two levels, with minima and without, of numbers of five and six bits, and of the
16 numbers of iq4."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.gguf.file.reader import BLOCKS, GgufFile, GgufTensor
from moec.frontend.gguf.graph.builder import Builder
from moec.ir import interpreter, shapes
from moec.ir.dialect import ExpertsSpec
from moec.ir.weight_operands import stored_weights
from moec.passes.export.widen_elements import WidenElements
from moec.passes.framework.base import Report
from moec.passes.quantize_experts import QuantizeExperts
from moec.targets.cpu.hardware.machine import Machine

from ...frontend.gguf.gguf_files import random_blocks
from ...products import sampled
from .one_node import compile_model

E, D, F, K = 4, 512, 256, 2
KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")
MIXED = {"Q4_K": "Q6_K", "Q3_K": "Q5_K"}
"""The type of down, where it is another one."""
ROWS = [0, 1, 3, 40]
HOW = [(machine, arithmetic) for machine in ("native", "avx2") for arithmetic in ("float32", "int8")]


def tensor(name: str, kind: str, *shape: int) -> GgufTensor:
    weights = next(weights for one, weights, _ in BLOCKS.values() if one == kind)
    blocks = random_blocks(kind, int(np.prod(shape)) // weights, 0.05)
    return GgufTensor(name, kind, shape, blocks.reshape(*shape[:-1], shape[-1] // weights, -1))


@functools.cache
def model(kind: str, arithmetic: str) -> ir.Model:
    shapes_of = {"gate": (E, F, D), "up": (E, F, D), "down": (E, D, F)}
    kinds = {"gate": kind, "up": kind, "down": MIXED.get(kind, kind)}
    tensors = {name: tensor(name, kinds[name], *shape) for name, shape in shapes_of.items()}
    metadata = {"general.architecture": "t", "t.block_count": 1, "t.embedding_length": D}
    builder = Builder(GgufFile(Path("model.gguf"), metadata, tensors), with_cache=False)
    write = builder.write
    write.graph.inputs.clear()
    operands: dict[str, Any] = {
        "x": write.input("x", ir.DataType.FLOAT, ("T", D)),
        "weights": write.input("weights", ir.DataType.FLOAT, ("T", K)),
        "experts": write.input("experts", ir.DataType.INT32, ("T", K)),
    }
    operands |= {name: builder.matrix(name, *shape) for name, shape in shapes_of.items()}
    write.output(write.moec("Experts", "y", ExpertsSpec("silu", "separate"), **operands)[0], "y")
    built = ir.Model(write.graph, ir_version=10)
    shapes.infer(built)
    if arithmetic == "int8":
        QuantizeExperts("int8").apply(built, Report())
        assert built.graph.node(-1).attributes["arithmetic"].as_string() == "int8"
    return built


def feeds(tokens: int) -> dict[str, np.ndarray]:
    """Most tokens go to expert 0; one expert is never used."""
    random = np.random.default_rng(tokens)
    chosen = random.integers(0, E - 1, (tokens, K)) * (random.random((tokens, K)) < 0.5)
    return {
        "x": random.standard_normal((tokens, D)).astype(np.float32),
        "weights": random.random((tokens, K)).astype(np.float32),
        "experts": chosen.astype(np.int32),
    }


@pytest.mark.parametrize("kind, how", sampled(KINDS, HOW, 11))
def test_products(kind: str, how: tuple[str, str], in_pool: Any) -> None:
    machine, arithmetic = how
    built = model(kind, arithmetic)
    run = compile_model(built, Machine.for_name(machine))
    for tokens in ROWS:
        case = feeds(tokens)
        (y,) = run(**case)
        (expected,) = interpreter.run(built, case, dtype=np.float64).values()
        error = np.abs(y - expected).max(initial=0) / max(1e-9, np.abs(expected).max(initial=0))
        assert error < (1e-5 if arithmetic == "float32" else 1e-2), (tokens, error)
    shared = in_pool(2, functools.partial(run, **case, threads=2))
    np.testing.assert_array_equal(shared[0], y)


LIKE_BYTES = [("IQ4_NL", ("native", "int8")), ("IQ4_XS", ("avx2", "float32"))]
MORE_LIKE_BYTES = [("IQ4_XS", ("native", "int8")), ("IQ4_NL", ("sse4", "int8")), ("IQ4_XS", ("avx2", "int8"))]


@pytest.mark.parametrize(
    "kind, how", [*LIKE_BYTES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in MORE_LIKE_BYTES)]
)
def test_the_numbers_of_iq4_give_the_bits_of_int8(kind: str, how: tuple[str, str]) -> None:
    machine, built = Machine.for_name(how[0]), model(kind, how[1])
    wide = built.clone()
    assert WidenElements().apply(wide, Report())
    weights = [stored_weights(one.graph.node(-1)).values() for one in (built, wide)]
    assert [{form.name for weight in stack for form in weight.formats} for stack in weights] == [{"iq4"}, {"int8"}]
    packed, bytes_ = (compile_model(one, machine) for one in (built, wide))
    for tokens in (*ROWS, 2, 130):
        case = feeds(tokens)
        np.testing.assert_array_equal(packed(**case)[0], bytes_(**case)[0])
