"""Checks of a layer of experts on a device against plain kernels, for a sample of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .tape import Tape, numbers

SAMPLED = 64
"""Tokens, hidden units and columns that are compared."""
LARGEST_DIFFERENCE = 3e-2
"""As a share of the largest number that is expected: results are rounded to bfloat16 in several places."""
LARGEST_ERROR = 1e-2
"""Norm of the difference as a share of the norm."""


class LayerCheck:
    """The sample of one layer. The first product, of call ``first``, makes hidden numbers, the second results."""

    def __init__(self, tape: Tape) -> None:
        self._tape, self._layer = tape, tape.data["layer"]
        calls = tape.data["calls"]
        products = [place for place, call in enumerate(calls) if "matrix" in _names(call)]
        self.first, self._second = products[0], products[-1]
        self._route = next(call for call in calls if "logits" in _names(call))
        tokens = self._layer["tokens"]
        random = np.random.default_rng(tokens)
        self._tokens = np.sort(random.permutation(tokens)[:SAMPLED])
        slots = self._layer["chosen"]
        self._pairs = (self._tokens[:, None] * slots + np.arange(slots)).astype(np.int32).ravel()
        self._columns = np.sort(random.permutation(self._layer["width"])[:SAMPLED]).astype(np.int32)
        self._y = _tensor(calls[-1], "y")
        self._hidden = 0

    def routing(self) -> tuple[str, bool]:
        """Compare the chosen experts of the sample, and their weights, with those that numpy computes."""
        logits = self._floats(_tensor(self._route, "logits"))[self._tokens]
        chosen = self._tape.array(_tensor(self._route, "chosen"))[self._tokens]
        weights = self._floats(_tensor(self._route, "weights"))[self._tokens]
        taken = np.take_along_axis(logits, chosen.astype(np.int64), 1)
        largest = -np.sort(-logits, axis=1)[:, : chosen.shape[1]]
        expected = np.exp(taken - taken.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        difference = float(np.abs(weights - expected).max())
        agrees = np.array_equal(-np.sort(-taken, axis=1), largest) and difference < 1e-2
        agrees &= all(len(set(row)) == len(row) for row in chosen.tolist())
        return f"routing of {len(self._tokens)} tokens: largest difference of a weight {difference:.2g}", bool(agrees)

    def hidden(self) -> tuple[str, bool]:
        """Compare hidden numbers after the first product."""
        call, layer = self._tape.data["calls"][self.first], self._layer
        count, slots, width, hidden = len(self._pairs), layer["chosen"], layer["width"], layer["hidden"]
        self._hidden = self._tape.device.memory(4 * count * hidden)
        tensors = [self._address(_tensor(call, name)) for name in ("rows", "matrix")]
        tensors += [self._address(_tensor(self._route, "chosen")), self._placed(self._pairs)]
        self._launch("kit_hidden", [*tensors, self._hidden], [count, slots, width, hidden], count * hidden)
        expected = np.frombuffer(self._tape.device.read(self._hidden, 4 * count * hidden), np.float32)
        expected = expected.reshape(count, hidden)
        rows = self._rows_of_pairs(call)
        actual = self._floats(_tensor(call, "out"))[rows]
        units = np.sort(np.random.default_rng(1).permutation(hidden)[:SAMPLED])
        compared = slice(0, count, slots)
        return compared_text("hidden", actual[compared][:, units], expected[compared][:, units])

    def results(self) -> tuple[str, bool]:
        """Compare results of the layer, after :meth:`hidden`."""
        call, layer = self._tape.data["calls"][self._second], self._layer
        tokens, columns = len(self._tokens), len(self._columns)
        y = self._tape.device.memory(4 * tokens * columns)
        pointers = [self._hidden, self._address(_tensor(call, "matrix"))]
        pointers += [self._address(_tensor(self._route, name)) for name in ("chosen", "weights")]
        pointers += [self._placed(self._pairs), self._placed(self._columns), y]
        sizes = [tokens, columns, layer["chosen"], layer["width"], layer["hidden"]]
        self._launch("kit_outputs", pointers, sizes, tokens * columns)
        expected = np.frombuffer(self._tape.device.read(y, 4 * tokens * columns), np.float32)
        actual = self._floats(self._y)[self._tokens][:, self._columns]
        return compared_text("results", actual, expected.reshape(actual.shape))

    def bits(self) -> bytes:
        """Read the results."""
        return self._tape.device.read(self._address(self._y), self._y["bytes"])

    def lose_results(self) -> None:
        """Overwrite the results, so that the next comparison is of new ones."""
        self._tape.device.clear(self._address(self._y), self._y["bytes"], 0xFF)

    def _rows_of_pairs(self, call: Mapping[str, Any]) -> np.ndarray:
        """The row of each sampled pair in the first product's result: its place in a block, or the pair itself."""
        if "pairs" not in _names(call):
            return self._pairs
        places = self._tape.array(_tensor(call, "pairs")).ravel()
        count = self._tape.array(_tensor(call, "count")).item()
        blocks = self._tape.array(_tensor(call, "blocks")).size
        rows = places[: count * (places.size // max(blocks, 1))]
        at = {pair: row for row, pair in enumerate(rows.tolist()) if pair >= 0}
        return np.array([at[pair] for pair in self._pairs.tolist()])

    def _floats(self, tensor: Mapping[str, Any]) -> np.ndarray:
        data = self._tape.device.read(self._address(tensor), tensor["bytes"])
        return numbers(data, tensor["dtype"]).reshape(tensor["shape"])

    def _address(self, tensor: Mapping[str, Any]) -> int:
        return self._tape.address(tensor["place"])

    def _placed(self, array: np.ndarray) -> int:
        address = self._tape.device.memory(array.nbytes)
        self._tape.device.write(address, array.tobytes())
        return int(address)

    def _launch(self, function: str, pointers: Sequence[int], sizes: Sequence[int], threads: int) -> None:
        code = self._tape.folder / "code" / f"{self._tape.data['helpers']}.fatbin"
        arguments = [["pointer", pointer] for pointer in pointers] + [["int32", size] for size in sizes]
        launch = {"blockIdx.x": -(-threads // 256), "threadIdx.x": 256}
        self._tape.device.launch(code, function, arguments, launch)


def compared_text(what: str, actual: np.ndarray, expected: np.ndarray) -> tuple[str, bool]:
    """Compare two arrays of floats: a text, and whether they agree."""
    difference = np.abs(actual - expected)
    share = float(difference.max() / np.abs(expected).max())
    error = float(np.linalg.norm(difference) / np.linalg.norm(expected))
    text = f"{actual.size} {what}: largest difference {share:.2g} of the largest, error {error:.2g} of the norm"
    return text, bool(share <= LARGEST_DIFFERENCE and error <= LARGEST_ERROR)


def _names(call: Mapping[str, Any]) -> list[str]:
    return [tensor["name"] for tensor in call["tensors"]]


def _tensor(call: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(tensor for tensor in call["tensors"] if tensor["name"] == name)
