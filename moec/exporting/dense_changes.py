"""Dense products of a folder whose weights passes quantised, and the tensors of the folder that these were.

A graph does not say which tensor a weight was read from. It is found by the key of the layer
(:mod:`moec.profiles.keys`), which passes keep when they change weights: a hash of the shape and of 64 rows before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.exporting.compressed_tensors import packed_tensors
from moec.frontend.huggingface.checkpoint.safetensors import NewTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.ir.dialect import LinearSpec, spec_of
from moec.ir.weight_operands import stored_weights
from moec.ir.weights.encode import Table, decode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.lazy import LazyMatrix
from moec.ir.weights.stored import WeightRun
from moec.passes.framework.base import Report
from moec.profiles.keys import key_of, key_of_linear


@dataclasses.dataclass(frozen=True)
class DenseChange:
    """A ``moec.Linear`` node after passes quantised its weight. ``key``: that of the weight before."""

    node: ir.Node
    key: str
    run: WeightRun
    transposed: bool

    @staticmethod
    def of(node: ir.Node) -> DenseChange:
        """Read the weight. Raises UnsupportedError for a weight that passes changed, but did not quantise."""
        (run,) = stored_weights(node)["weight"].runs
        if not run.format.quantized:
            raise UnsupportedError(
                f"node {node_name(node)}: passes changed its weight, of {run.format}; of dense products a folder gets "
                "int4 and int8, all else stays: give cast-weights the option weights=experts"
            )
        return DenseChange(node, key_of(node), run, spec_of(node, LinearSpec).transposed)

    @property
    def form(self) -> WeightFormat:
        return self.run.format

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = self.run.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def table(self, table: Table) -> np.ndarray:
        """A table [out, ...] of the weight."""
        array = self.run.encoded(0).read(table)
        assert array is not None
        return array.T if self.transposed else array


def names_of(
    changes: Sequence[DenseChange], weights: Mapping[str, CheckpointWeight], report: Report
) -> dict[str, DenseChange]:
    """Find the weight [out,in] of each change among the ``weights`` of products. Those of which none is found, or
    several, stay in floats, with a warning."""
    matched: dict[str, DenseChange] = {}
    keys = functools.cache(functools.partial(_key, weights))
    for change in changes:
        alike = [name for name, weight in weights.items() if weight.data.shape == change.shape]
        names = [name for name in alike if keys(name, change.transposed) == change.key]
        if len(names) == 1 and matched.get(names[0], change).form == change.form:
            matched[names[0]] = change
            continue
        why = "no tensor that a product alone reads" if not names else f"also those of {' and '.join(names[:2])}"
        report.warn("export", node_name(change.node), f"its weight stays in floats: its numbers are {why}")
    return matched


def _key(weights: Mapping[str, CheckpointWeight], name: str, transposed: bool) -> str:
    weight = weights[name]
    if weight.form is None:
        matrix = np.asarray(weight.data.read()).astype(np.float32)
    else:
        matrix = decode(LazyMatrix(lambda table: _read(weight, table)), weight.form, weight.axis)
    key = key_of_linear(matrix.T if transposed else matrix)
    release_pages()
    return key


def _read(weight: CheckpointWeight, table: Table) -> np.ndarray | None:
    return weight.tables[table].read() if table in weight.tables else None


def tensors_of(name: str, change: DenseChange) -> dict[str, NewTensor]:
    """The tensors in the place of a weight. Raises UnsupportedError for a format that folders do not have."""
    assert change.run.scale is not None and change.run.scale.dtype is not None
    read: Callable[[Table], np.ndarray] = change.table
    return packed_tensors(name, change.form, change.run.scale.dtype, change.shape, read)
