"""Encoding of weights by the inputs that a profile recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.jobs import HERE, Job, JobRunner
from moec.common.names import node_name
from moec.ir.dialect import is_moec
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights
from moec.ir.weights.encode import Encoded, encode
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.gptq import gptq, importance_of
from moec.passes.weights.scale_search import nearest
from moec.passes.weights.store import Encoder
from moec.passes.weights.tiles import product
from moec.profiles import Profile
from moec.profiles.keys import keep_key
from moec.profiles.measures import PRIOR_SHARE, ExpertsMeasures, LinearMeasures, MissingError, enough, mean_weight

Array = np.ndarray[Any, Any]
Method = Literal["rtn", "gptq", "awq"]
_FEWEST_ROWS = 1 / 4
"""Rows per input below which a moment is not used: it would fit these rows and no others."""


ENOUGH_ROWS = 4
"""Rows per input from which a method that looks at inputs reaches its gain; with fewer it fits those rows."""


@contextlib.contextmanager
def opened(pass_name: str, method: Method, path: str | None) -> Iterator[Profile | None]:
    """Open the profile at ``path``; yield None without a path. Raises MoecError when the method needs a profile and
    there is none, and for a file that is no profile."""
    if path is None:
        if method != "rtn":
            raise MoecError(
                f"{pass_name}: method={method} needs to know the inputs of the weights; "
                "expected profile=FILE, which moec profile MODEL --data DATA -o FILE makes"
            )
        yield None
        return
    with contextlib.closing(Profile.read(path)) as profile:
        yield profile


class KnownInputs:
    """The recorded inputs of one node's weights; none without a profile.

    The constructor records on the node which layer of a profile it is, because its weights change next. Raises
    MoecError if the profile does not have the node. ``jobs`` runs the encoders of experts, each expert in one job.
    """

    def __init__(self, profile: Profile | None, node: ir.Node, method: Method, jobs: JobRunner = HERE) -> None:
        self._method, self._name = method, node_name(node)
        self._jobs = HERE if is_moec(node, "Linear") else jobs
        self._measures = self._weights = None
        if profile is not None:
            self._measures = profile.linear(node) if is_moec(node, "Linear") else profile.experts(node)
            self._where = f"{profile.path}: node {node_name(node)}"
            if isinstance(self._measures, ExpertsMeasures) and method != "rtn":
                self._weights = ExpertWeights(node)
        keep_key(node)

    def rows(self, expert: int) -> Array | None:
        """Some inputs [n,in] of an expert, or of the dense product; None if none were recorded."""
        measures = self._measures
        if measures is None:
            return None
        with profile_reading(self._where):
            rows = measures.rows() if isinstance(measures, LinearMeasures) else measures.rows(expert)
        return rows if len(rows) else None

    def too_few(self) -> str | None:
        """Warning that half of the experts, or the dense product, saw too few rows for the method; None if there were
        enough."""
        measures = self._measures
        if self._method == "rtn" or measures is None:
            return None
        experts = isinstance(measures, ExpertsMeasures)
        inputs = max(measures.inner, measures.hidden) if isinstance(measures, ExpertsMeasures) else measures.inner
        with profile_reading(self._where):
            median = float(np.median(measures.measured))
        needed = min(ENOUGH_ROWS * inputs, enough(inputs))
        if median >= needed:
            return None
        saw = (
            f"half of the experts saw {median:g} rows of data or fewer"
            if experts
            else f"it saw {median:g} rows of data"
        )
        return (
            f"{saw}; method={self._method} fits these and, with {inputs} inputs, needs about {needed} to do as well on "
            "others: profile more data"
        )

    def encoder(self, name: str) -> Encoder | None:
        """Encoder of the weight operand ``name``. For the method that uses no inputs it is None where encoders run in
        this process: then numbers are rounded when they are read. If too few inputs were recorded, all count the
        same."""
        if self._method == "rtn" or self._measures is None:
            return None if self._jobs.is_here else self._encoder_to_nearest(name)

        def encoder(weight: Array, form: WeightFormat, axis: int, expert: int) -> Encoded:
            matrix = np.ascontiguousarray(np.moveaxis(weight, axis, 0), np.float32)
            with profile_reading(self._where):
                moment = self._moment(name, expert, len(matrix))
            data, *others = self._run(name, expert, _rounded, self._method, matrix, form, moment)
            tables = (None if table is None else _inputs_at(axis, table) for table in others)
            return Encoded(_inputs_at(axis, data), *tables)

        return encoder

    def _encoder_to_nearest(self, name: str) -> Encoder:
        return lambda weight, form, axis, expert: self._run(name, expert, encode, weight, form, axis)

    def _run(self, name: str, expert: int, function: Callable[..., Encoded], *arguments: Any) -> Encoded:
        return self._jobs.call(Job(f"node {self._name}: weight {name} of expert {expert}", function, arguments))

    def _moment(self, name: str, expert: int, size: int) -> Array:
        """Second moment [in,in] of a weight's inputs; zeros if too few were seen."""
        measures, weights = self._measures, self._weights
        if isinstance(measures, LinearMeasures):
            is_measured = measures.measured >= size * _FEWEST_ROWS
            return measures.moment_in() if is_measured else np.zeros((size, size), np.float32)
        assert measures is not None and weights is not None
        others, weight = measures.array("sample"), mean_weight(measures.array("sample_gates"))
        if measures.measured[expert] + len(others) < size * _FEWEST_ROWS:
            return np.zeros((size, size), np.float32)
        others = others * weight if weights.spec.weight_on_input else others
        others = expert_output(weights, expert, others)[0] if name == "down" else others
        count = PRIOR_SHARE * float(measures.measured.mean())
        prior = product(others.T, others) * np.float32(weight * count / max(1, len(others)))
        return prior + (measures.moment_hidden(expert) if name == "down" else measures.moment_in(expert))


def _rounded(method: Method, matrix: Array, form: WeightFormat, moment: Array) -> Encoded:
    if form.minima or form.two_levels:
        raise ValueError(f"{form} is rounded to nearest only; expected method=rtn")
    if method == "gptq":
        return gptq(matrix, form, moment)
    return nearest(matrix, form, importance_of(moment))


@contextlib.contextmanager
def profile_reading(where: str) -> Iterator[None]:
    """Context for reading arrays of a profile: its errors say where the array belongs and how to repair the profile."""
    try:
        yield
    except MissingError as error:
        raise MoecError(f"{where}: {error}") from None
    except (ValueError, IndexError) as error:
        raise MoecError(f"{where}: the profile is damaged ({error}); make it anew") from None


def _inputs_at(axis: int, table: Array) -> Array:
    """Move the first axis of a table, that of the inputs, to ``axis``."""
    return np.ascontiguousarray(np.moveaxis(table, 0, axis))
