"""Measurements of a layer: sums over the tokens it saw, which add up over data, and a few of its rows.

Sizes: E experts, k experts per token, d inputs, f hidden units, B bins of a histogram, n kept rows, P parts
(gate, where there is one, up, down).

Arrays of experts:

====================  ==========  ======================================================================================
``count``             [E]         tokens that came to the expert
``gate_sum``          [E]         sum of their weights
``gate_histogram``    [E,B]       their weights, as shares of all weights of the token, in B equal bins from 0 to 1
``ratio_histogram``   [k,B]       the weight of the i-th choice of a token as a share of its first
``pairs``             [E,E]       tokens that both experts see
``following``         [E,E']      of these tokens, those that expert e' of the next layer sees
``measured``          [E]         rows in the sums below, at most :func:`enough`. Sums over outputs and hidden units use
                                  at most :func:`enough_outputs` of them, each of which then counts as several
``output_norm``       [E]         sum of |f(x)|, f without its weight
``saliency``          [E]         sum of g |f(x)|, g the weight as a share of all weights of the token (REAP,
                                  arXiv 2510.13999, with weights renormalised)
``hidden``            [E,f]       sum of g |h|, h the hidden units
``moment_in``         [E][d,d]    sum of g x x^T; x is what the expert sees
``moment_hidden``     [E][f,f]    sum of g h h^T
``rows``              [E][n,d]    some of the expert's rows
``row_gates``         [E][n]      their weights, not normalised
``error``             {F: [E,P]}  sum over ``rows`` of g^2 |f(x) - f'(x)|^2, f' with only that part in format F
``prior_error``       {F: [E,P]}  the same as a mean over some tokens of the layer, as if the expert had seen them, each
                                  with the mean weight of the layer's calls
``energy``            [E]         sum over ``rows`` of g^2 |f(x)|^2
``sensitivity``       [P]         change of the model's output, as a Kullback-Leibler divergence in nats per position,
                                  over the mean square of its cause: the error of the layer's output for a token when
                                  that part of all experts is rounded
``sample``            [n,d]       some tokens of the layer
``sample_gates``      [n,E]       the weights of all experts for them, 0 for those not selected
``sample_output``     [n,width]   the layer's output for them, computed in float32
====================  ==========  ======================================================================================

Arrays of linears: ``rows`` [n,K], ``moment_in`` [K,K] = sum of x x^T, ``measured``, ``error`` {F: scalar}, ``energy``.
Layers that read the same value share rows and moment in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moec.common.errors import MoecError

Array = np.ndarray[Any, Any]

BINS = 32
ROWS = 64
"""Rows that are kept of each expert; four times as many of each linear, eight times as many tokens of a layer."""
PRIOR_SHARE = 1 / 5
"""Prior of each expert: tokens of the whole layer that it is assumed to have seen in addition to its own, as a share of
the mean expert's. Data other than the measured data reaches other experts."""
PRIOR_ROWS = 32
"""Rows that represent the prior when errors of formats are measured."""


def enough(inputs: int) -> int:
    """Number of rows beyond which sums over them change little, for a number of inputs."""
    return max(8192, 2 * inputs)


def enough_outputs(hidden: int) -> int:
    """Number of these rows whose hidden units and outputs are computed; they represent all."""
    return max(2048, 4 * hidden)


def mean_weight(gates: Array) -> float:
    """Mean size of routing weights [n,E], which are 0 for experts that were not selected."""
    return float(np.abs(gates).sum()) / max(1, np.count_nonzero(gates))


def evenly(rows: Array, most: int) -> Array:
    """Select ``most`` of the rows [n,...], evenly spaced; all of them where there are no more."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


class MissingError(MoecError):
    """A profile does not have an array."""

    def __init__(self, name: str) -> None:
        more = ", with second moments" if name.startswith("moment") else ""
        super().__init__(f"the profile lacks {name!r}; make it anew{more}")


@dataclasses.dataclass(frozen=True)
class ExpertsMeasures:
    """Measurements of a layer of experts; arrays as in the module's docstring. Large ones are read on demand."""

    key: str
    name: str
    experts: int
    k: int
    inner: int
    hidden: int
    parts: tuple[str, ...]
    tokens: int
    next_key: str | None
    read: Callable[[str], Array | None]

    def array(self, name: str) -> Array:
        """Read an array over all experts. Raises MissingError where the profile does not have it."""
        return _needed(self.read(name), name)

    @property
    def count(self) -> Array:
        return self.array("count")

    @property
    def measured(self) -> Array:
        return self.array("measured")

    def recorded(self) -> Array | None:
        """List the experts of some tokens, int32 [n,k] with -1 for none; None where the profile does not have them."""
        gates = self.read("sample_gates")
        if gates is None:
            return None
        order = np.argsort(gates == 0, axis=1, kind="stable")[:, : self.k]
        return np.where(np.take_along_axis(gates, order, 1) != 0, order, -1).astype(np.int32)

    def moment_in(self, expert: int) -> Array:
        """Sum of g x x^T, [d,d] float32; zeros for an expert that no row reached."""
        return unpacked(self.array(f"moment_in/{expert}"), self.inner)

    def moment_hidden(self, expert: int) -> Array:
        """Sum of g h h^T, [f,f] float32; zeros for an expert that no row reached."""
        return unpacked(self.array(f"moment_hidden/{expert}"), self.hidden)

    def rows(self, expert: int) -> Array:
        """Some rows that the expert saw, [n,d]; n may be 0."""
        return self.array(f"rows/{expert}")

    def row_gates(self, expert: int) -> Array:
        """Routing weights [n] of these rows."""
        return self.array(f"row_gates/{expert}")

    @property
    def sensitivity(self) -> Array | None:
        """Sensitivity [P]; None where it was not measured."""
        return self.read("sensitivity")

    def error(self, form: str) -> Array | None:
        """Error [E,P]; None where the format was not measured."""
        return self.read(f"error/{form}")

    def total_error(self, form: str) -> Array | None:
        """Error [E,P] over all tokens of each expert, its prior (:data:`PRIOR_SHARE`) included. Returns None where the
        format was not measured. Raises MissingError as :meth:`array`."""
        own = self.error(form)
        if own is None:
            return None
        kept = np.array([len(self.rows(expert)) for expert in range(self.experts)])
        of_own = np.divide(self.count, kept, out=np.zeros(self.experts), where=kept > 0)
        of_others = PRIOR_SHARE * self.count.mean()
        return own * of_own[:, None] + self.array(f"prior_error/{form}") * of_others


_ALL_OF_LAYER = frozenset({"ratio_histogram", "sample", "sample_output", "sensitivity"})
"""Measurements that belong to no single expert."""
_BY_TOKEN = frozenset({"sample_gates"})
_OF_PAIRS = frozenset({"pairs"})


def selected(measures: ExpertsMeasures, experts: Sequence[int]) -> ExpertsMeasures:
    """Select the measures of some experts of a layer, in this order. Tokens and weights of the other experts are not
    redistributed. Raises ValueError for an expert that the layer does not have."""
    if not all(0 <= expert < measures.experts for expert in experts):
        raise ValueError(f"experts {list(experts)} of {measures.experts}")
    whole, numbers = measures.read, list(experts)

    def read(name: str) -> Array | None:
        concept, _, expert = name.partition("/")
        if expert.isdecimal():
            return whole(f"{concept}/{numbers[int(expert)]}")
        array = whole(name)
        if array is None or concept in _ALL_OF_LAYER:
            return array
        if concept in _BY_TOKEN:
            return array[:, numbers]
        return array[numbers][:, numbers] if concept in _OF_PAIRS else array[numbers]

    return dataclasses.replace(measures, experts=len(numbers), read=read)


@dataclasses.dataclass(frozen=True)
class LinearMeasures:
    """Measurements of a dense product. Raises MissingError as :class:`ExpertsMeasures`."""

    key: str
    name: str
    inner: int
    tokens: int
    read: Callable[[str], Array | None]

    @property
    def measured(self) -> int:
        """Number of rows in the moment."""
        count = self.read("measured")
        return 0 if count is None else int(count)

    def moment_in(self) -> Array:
        """Sum of x x^T, [K,K] float32."""
        return unpacked(_needed(self.read("moment_in"), "moment_in"), self.inner)

    def rows(self) -> Array:
        """Some of its inputs, [n,K]."""
        return _needed(self.read("rows"), "rows")

    def error(self, form: str) -> float | None:
        """Sum over ``rows`` of |y - y'|^2; None where the format was not measured."""
        total = self.read(f"error/{form}")
        return None if total is None else float(total)


def _needed(array: Array | None, name: str) -> Array:
    if array is None:
        raise MissingError(name)
    return array


def packed(moment: Array) -> Array:
    """Pack the lower triangle of a symmetric matrix [n,n] row by row: [n (n + 1) / 2]."""
    return moment[np.tri(len(moment), dtype=bool)]


def unpacked(triangle: Array, size: int) -> Array:
    """Unpack a triangle of :func:`packed` to the symmetric matrix [size,size]."""
    moment = np.zeros((size, size), triangle.dtype)
    moment[np.tri(size, dtype=bool)] = triangle
    return moment + np.tril(moment, -1).T
