"""Loss of rounding a weight by its inputs, as a share of the loss of rounding to nearest.

The weight is Gaussian. Inputs have most of their energy in an eighth as many directions, in channels whose sizes are
log-normal. Errors are Frobenius norms of the output's, on inputs that were not measured. Seconds are those of a core.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from moec.ir.weights.encode import Encoded, decode, encode
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.gptq import gptq, importance_of
from moec.passes.weights.scale_search import nearest

Array = np.ndarray[Any, Any]

FORMATS = [
    *(WeightFormat("int8", group) for group in (0, 32)),
    *(WeightFormat("int4", group, zeros) for group in (128, 32) for zeros in (False, True)),
    *(WeightFormat(name, 32, zeros) for name in ("int3", "int2") for zeros in (False, True)),
    *(WeightFormat("mxfp4", 32), WeightFormat("fp8"), WeightFormat("fp8", 128)),
]


def inputs(random: np.random.Generator, mixing: Array, sizes: Array, count: int) -> Array:
    """Draw inputs [count,in] in float32."""
    directions, size = mixing.shape
    hidden = random.normal(size=(count, directions)) @ mixing / np.sqrt(directions)
    return ((hidden + 0.3 * random.normal(size=(count, size))) * sizes).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--outputs", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8192)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    weight = random.normal(size=(options.inputs, options.outputs)).astype(np.float32)
    mixing, sizes = (
        random.normal(size=(options.inputs // 8, options.inputs)),
        np.exp(0.5 * random.normal(size=options.inputs)),
    )
    measured, others = (inputs(random, mixing, sizes, count) for count in (options.rows, 2048))
    moment = measured.T @ measured

    def error(stored: Encoded, form: WeightFormat) -> float:
        return float(np.linalg.norm(others @ (decode(stored, form, 0) - weight)))

    print(f"{'format':10} {'rtn':>8} {'awq/rtn':>8} {'gptq/rtn':>8} {'awq s':>6} {'gptq s':>6}")
    size = float(np.linalg.norm(others @ weight))
    for form in FORMATS:
        plain = error(encode(weight, form, 0), form)
        start = time.process_time()
        searched = nearest(weight, form, importance_of(moment))
        middle = time.process_time()
        calibrated = gptq(weight, form, moment)
        end = time.process_time()
        shares = f"{error(searched, form) / plain:8.3f} {error(calibrated, form) / plain:8.3f}"
        print(f"{form!s:10} {plain / size:8.4f} {shares} {middle - start:6.2f} {end - middle:6.2f}")


if __name__ == "__main__":
    main()
