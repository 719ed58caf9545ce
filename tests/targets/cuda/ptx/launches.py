"""Launches of the project's kernels on numpy arrays, for the interpreter of PTX, with the expected results.

The kernels are those whose text is under ``tests/golden``: 8 experts, 128 inputs, 64 gated units, two slots, bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from moec.ir import semantics
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.cuda.kernels import dispatch
from moec.targets.cuda.kernels.grouped_problem import interleave
from moec.targets.cuda.kernels.mma_tile import SHAPES, SWIZZLE_BYTES

from ..kernels.test_dispatch import expected_order
from .hopper import TensorMap
from .machine import run

EXPERTS, INNER, RING_INNER, WIDTH, SLOTS, ROWS = 8, 128, 384, 64, 2, 16
HOPPER_POOL_BYTES = 8 * (64 + 128) * SWIZZLE_BYTES + 9 * 16
"""Bytes of eight stages of 64 rows and 128 columns, with two barriers each, and of the barriers for turns."""
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch. ``arguments``: arrays and numbers by the names of parameters; ``expected``: the expected results, in
    which NaN stands for numbers that the kernel need not write."""

    arguments: Mapping[str, Any]
    expected: Arrays
    grid: int
    block: int
    pool_bytes: int = 0
    tolerance: float = 0.0

    def check(self, ptx: str, *, eager: bool = False) -> None:
        """Run a kernel's PTX, whose first line names its parameters. Raises AssertionError if results differ, PtxError
        if the interpreter finds a fault."""
        named = {
            name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in self.arguments.items()
        }
        arguments = [named[name] for name in ptx.partition("\n")[0].removeprefix("// ").split(", ")]
        run(
            ptx,
            arguments,
            grid=self.grid,
            block=self.block,
            pool_bytes=self.pool_bytes,
            eager=eager,
        )
        for name, expected in self.expected.items():
            actual, wide = named[name].astype(np.float64), expected.astype(np.float64)
            used = ~np.isnan(wide)
            np.testing.assert_allclose(actual[used], wide[used], rtol=self.tolerance, atol=self.tolerance)


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _half(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16)


def _ids(tokens: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-1, EXPERTS, (tokens, SLOTS)).astype(np.int32)


def route() -> Launch:
    logits = _random(7, EXPERTS)
    logits[3] = 1.0  # ties
    weights, chosen = semantics.route(RouteSpec(k=SLOTS), logits, None)
    arguments = {
        "logits": logits,
        "chosen": np.full((7, SLOTS), -7, np.int32),
        "weights": np.zeros((7, SLOTS), np.float32),
    }
    return Launch({**arguments, "tokens": 7}, {"chosen": chosen, "weights": weights}, 2, 128, tolerance=1e-6)


def _sorted(tokens: int, rows: int = ROWS) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The results of dispatch by name: arrays before it runs, and after."""
    ids = _ids(tokens)
    places, blocks = expected_order(EXPERTS, rows, ids)
    most = dispatch.most_blocks(EXPERTS, ids.size, rows)
    empty = {
        name: np.full(size, -7, np.int32) for name, size in (("pairs", most * rows), ("blocks", most), ("count", 1))
    }
    full = {name: array.copy() for name, array in empty.items()}
    full["pairs"][: len(places)], full["blocks"][: len(blocks)], full["count"][0] = places, blocks, len(blocks)
    return empty, full


def sort_pairs() -> Launch:
    empty, full = _sorted(37)
    names = {"sorted_pairs": "pairs", "block_experts": "blocks", "block_count": "count"}
    used = {"sorted_pairs": int(full["count"][0]) * ROWS, "block_experts": int(full["count"][0]), "block_count": 1}
    expected = {name: np.full(full[short].shape, np.nan) for name, short in names.items()}
    for name, short in names.items():
        expected[name][: used[name]] = full[short][: used[name]]
    arguments = {name: empty[short] for name, short in names.items()}
    return Launch({**arguments, "chosen": _ids(37), "slots": SLOTS, "tokens": 37}, expected, 1, 1024)


def combine() -> Launch:
    ids, pairs, weights = _ids(5), _random(5 * SLOTS, WIDTH), _random(5, SLOTS, seed=2)
    chosen = (ids >= 0)[..., None]
    y = (np.where(chosen, pairs.reshape(5, SLOTS, WIDTH), 0) * weights[..., None]).sum(1)
    arguments = {"chosen": ids, "pairs": pairs, "weights": weights, "y": _half(np.full((5, WIDTH), np.nan))}
    return Launch({**arguments, "slots": SLOTS, "tokens": 5}, {"y": y}, 5, 32, tolerance=2e-2)


@dataclasses.dataclass(frozen=True)
class _Experts:
    """Operands of the first product, from which its results for a token and an expert are computed."""

    rows: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    gate_bias: np.ndarray
    up_bias: np.ndarray

    @staticmethod
    def random(tokens: int, inner: int = INNER) -> _Experts:
        matrices = [_half(_random(EXPERTS, WIDTH, inner, seed=seed) / inner**0.5) for seed in (3, 4)]
        return _Experts(
            _half(_random(tokens, inner)), *matrices, *(_random(EXPERTS, WIDTH, seed=seed) for seed in (5, 6))
        )

    def arguments(self) -> dict[str, np.ndarray]:
        bias = interleave(self.gate_bias[..., None], self.up_bias[..., None])[..., 0]
        return {"rows": self.rows, "matrix": interleave(self.gate, self.up), "bias": np.ascontiguousarray(bias)}

    def result(self, token: int, expert: int) -> np.ndarray:
        wide = np.float32
        gate, up = (
            matrix[expert].astype(wide) @ self.rows[token].astype(wide) + bias[expert]
            for matrix, bias in ((self.gate, self.gate_bias), (self.up, self.up_bias))
        )
        return semantics.activated(ExpertsSpec(), gate, up)


def product_of_pairs() -> Launch:
    ids, experts = _ids(3), _Experts.random(3)
    out = np.full((ids.size, WIDTH), np.nan, np.float32)
    for pair, expert in enumerate(ids.reshape(-1)):
        if expert >= 0:
            out[pair] = experts.result(pair // SLOTS, int(expert))
    arguments = {**experts.arguments(), "chosen": ids, "out": _half(np.zeros_like(out)), "slots": SLOTS, "tokens": 3}
    return Launch(arguments, {"out": out}, out.shape[0] * 8, 128, tolerance=3e-2)


def _blocks(rows: int, tokens: int, inner: int = INNER) -> tuple[dict[str, Any], np.ndarray, int]:
    """The arguments of a product in blocks of rows, its result, and the number of blocks."""
    _, order = _sorted(tokens, rows)
    experts, blocks = _Experts.random(tokens, inner), len(order["blocks"])
    out = np.full((len(order["pairs"]), WIDTH), np.nan, np.float32)
    for place in range(int(order["count"][0]) * rows):
        if order["pairs"][place] >= 0:
            out[place] = experts.result(int(order["pairs"][place]) // SLOTS, int(order["blocks"][place // rows]))
    arguments = {**experts.arguments(), **order, "out": _half(np.zeros_like(out)), "B": blocks, "slots": SLOTS}
    return arguments, out, blocks


def product_for_ampere() -> Launch:
    arguments, out, blocks = _blocks(ROWS, 9)
    shape = SHAPES[ROWS]
    return Launch(arguments, {"out": out}, blocks, shape.threads, shape.shared_bytes, 3e-2)


def product_for_hopper() -> Launch:
    """A product for Hopper with more k-tiles than stages, in which blocks of threads compute several tiles."""
    arguments, out, _ = _blocks(64, 3, RING_INNER)
    matrix = TensorMap(arguments.pop("matrix"), rows=2 * WIDTH)
    return Launch(
        {**arguments, "matrix_map": matrix, "multiprocessors": 2}, {"out": out}, 2, 384, HOPPER_POOL_BYTES, 3e-2
    )


LAUNCHES: dict[str, Callable[[], Launch]] = {
    "route": route,
    "dispatch": sort_pairs,
    "combine": combine,
    "grouped_gemv": product_of_pairs,
    "grouped_gemm_mma": product_for_ampere,
    "grouped_gemm_wgmma": product_for_hopper,
}
"""Functions that make a launch, by the name of the kernel's file."""
