"""Seconds of the pipeline O2, and of raise-moe in it, for experts exported as loops.

    python benchmarks/raise_loops.py 2x16 2x32 2x64 2x128 8x64

Each argument is layers x experts. Layers are tiny (width 16, 24 hidden units, top-2): what grows is the graph.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser

import moec
from moec.passes import pipeline
from moec.passes.framework.base import Report

WIDTH, HIDDEN = 16, 24


def layer(number: int, experts: int) -> Iterator[str]:
    """Write one layer in ONNX's text, from x{number} to x{number + 1}."""
    here = f"_{number}"
    yield f"logits{here} = MatMul (x{number}, gate{here}) p{here} = Softmax <axis = -1> (logits{here})"
    yield f"top{here}, ids{here} = TopK <axis = -1> (p{here}, two) sum{here} = ReduceSum (top{here}, last)"
    yield f"w{here} = Div (top{here}, sum{here}) shape{here} = Shape (x{number})"
    yield f"y{here}_0 = ConstantOfShape <value = float[1] {{0}}> (shape{here})"
    for expert in range(experts):
        e = f"{here}_{expert}"
        yield f"m{e} = Equal (ids{here}, id_{expert}) at{e} = NonZero (m{e})"
        yield f"pairs{e} = Transpose <perm = [1, 0]> (at{e}) rows{e} = Gather <axis = 0> (at{e}, zero)"
        yield f"x{e} = Gather <axis = 0> (x{number}, rows{e})"
        yield f"g{e} = MatMul (x{e}, wg{e}) u{e} = MatMul (x{e}, wu{e}) s{e} = Sigmoid (g{e}) a{e} = Mul (g{e}, s{e})"
        yield f"h{e} = Mul (a{e}, u{e}) d{e} = MatMul (h{e}, wd{e}) w1{e} = GatherND (w{here}, pairs{e})"
        yield f"w2{e} = Unsqueeze (w1{e}, one) z{e} = Mul (d{e}, w2{e}) r{e} = Unsqueeze (rows{e}, one)"
        yield f'y{here}_{expert + 1} = ScatterND <reduction = "add"> (y{here}_{expert}, r{e}, z{e})'
    yield f"x{number + 1} = Add (x{number}, y{here}_{experts})"


def model_of(layers: int, experts: int) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    tensors = {"two": np.array([2]), "last": np.array([-1]), "one": np.array([1]), "zero": np.array(0)}
    tensors |= {f"id_{expert}": np.array(expert) for expert in range(experts)}
    for number in range(layers):
        tensors[f"gate_{number}"] = random.standard_normal((WIDTH, experts)).astype(np.float32)
        for expert in range(experts):
            for name, shape in (("wg", (WIDTH, HIDDEN)), ("wu", (WIDTH, HIDDEN)), ("wd", (HIDDEN, WIDTH))):
                tensors[f"{name}_{number}_{expert}"] = (random.standard_normal(shape) / 4).astype(np.float32)
    body = " ".join(text for number in range(layers) for text in layer(number, experts))
    text = f"agraph (float[n, {WIDTH}] x0) => (float[n, {WIDTH}] x{layers}) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    return model


def main(arguments: list[str]) -> None:
    print("layers  experts  raised  O2 [s]  raise-moe [s]")
    for argument in arguments:
        layers, experts = map(int, argument.split("x"))
        model, report = moec.import_model(model_of(layers, experts)), Report()
        seconds = {}
        for step in pipeline.parse("O2"):
            start = time.perf_counter()
            pipeline.run(model, (step,), report)
            seconds[step.name] = seconds.get(step.name, 0.0) + time.perf_counter() - start
        raised = sum(node.op_type in ("MoE", "Experts") for node in model.graph)
        print(
            f"{layers:6}  {experts:7}  {raised:6}  {sum(seconds.values()):6.1f}  {seconds['raise-moe']:13.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
