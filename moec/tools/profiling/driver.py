"""``moec profile``: make a profile of a model on data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.artifacts.loading import load
from moec.common.errors import MoecError, reporting
from moec.common.jobs import Job, JobExecutor, JobRunner, job_runner
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.common.progress import Progress, silent
from moec.common.replacing import check_replaceable, replacing
from moec.common.seals import foreign_file
from moec.common.specs import tensor_specs
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.ir.dialect import LinearSpec, is_moec, spec_of
from moec.ir.interpreter import EvaluationError
from moec.ir.weight_operands import stored_weights
from moec.ir.weights.format import WeightFormat
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.framework.shorthand import parse_format
from moec.passes.weights.linears import MINIMUM, NONE_FOUND, make_linears
from moec.profiles.file import Profile, check_mergeable, held_arrays, merge, write_new
from moec.profiles.head import DataPiece, Head, LayerEntry
from moec.runtime.machine import check_threads
from moec.runtime.model import CompiledModel
from moec.tools.data import Data, TextOptions, check_limits, token_input, with_tokenizer_of
from moec.tools.labels import judged_output
from moec.tools.profiling.formats import linear_errors
from moec.tools.profiling.one_expert import ExpertRows, MeasuredExpert, ModelToMeasure, measure_expert, measure_in_job
from moec.tools.profiling.output_sensitivity import output_sensitivities, positions_wanted, too_large
from moec.tools.profiling.rows_apart import RowsApart, cut, most_positions, positions_of
from moec.tools.profiling.sums import ExpertsSums, InputSums
from moec.tools.profiling.taps import Tap, observe
from moec.tools.profiling.threads import ParallelRun, measuring_threads

Array = np.ndarray[Any, Any]

FORMATS = "int8,int4/32,int3/32,int2/32"
"""Formats whose errors are measured by default."""
FEW = 128
"""Tokens below which an expert's numbers say little."""


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """A layer of experts: tokens it saw, those of its ``least`` used expert, and how many experts saw a ``few``, fewer
    than ``enough``. ``more``: factor of additional data with which that expert would see enough; None where it saw
    none."""

    name: str
    experts: int
    tokens: int
    least: int
    few: int
    more: float | None
    enough: int = FEW


@dataclasses.dataclass(frozen=True)
class Measured:
    """Extent of a profile. ``run_seconds``: time in which the model ran, of all ``seconds``. ``held_back``: tokens that
    were not measured. ``notes``: parts that the profile lacks, and why."""

    tokens: int
    batches: int
    run_seconds: float
    seconds: float
    layers: list[LayerSummary]
    linears: int
    held_back: int
    notes: list[str]


@reporting("profiling")
def profile(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    passes: str = "O2",
    text: TextOptions | None = None,
    formats: str = FORMATS,
    moments: bool = True,
    minimum: int = MINIMUM,
    merge_with: Sequence[str | os.PathLike[str]] = (),
    threads: int | None = None,
    workers: int = 0,
    executor: JobExecutor | None = None,
    progress: Progress = silent,
) -> Measured:
    """Run a model on data and write measurements of its layers as a profile.

    ``passes``: the pipeline after which the model is measured; ``formats``: those whose errors are measured
    (``int4/32,int8``); ``moments``: whether to keep second moments, which GPTQ needs, and which are most of the file;
    ``minimum``: least number of elements of the weight of a dense product that is measured; ``merge_with``: profiles of
    the same model to add.

    ``workers``, ``executor``: where experts are measured after the model has run, each in one job: in so many processes
    of this machine, or on an executor of PEP 3148 whose machines see the same files, those beside ``output`` included
    (:mod:`moec.common.jobs`). Results are the same.

    Raises MoecError for a model, data or formats that cannot be used, numbers that are not finite, profiles of another
    model, and a file that cannot be written.
    """
    start = time.perf_counter()
    check_replaceable(output, foreign_file)
    others = [Profile.read(path) for path in merge_with]
    forms = [parse_format("formats", item.strip()) for item in formats.split(",") if item.strip()]
    progress("importing")
    graph = compiler.import_model(model, cache=False)
    inputs = tensor_specs(graph.graph.inputs)
    text = with_tokenizer_of(text, model, data)
    sources = [Data(path, inputs, text) for path in data]
    progress(f"running {passes}")
    pipeline.run(graph, pipeline.parse(passes), Report())
    list(make_linears(graph.graph, minimum, routers=False))
    notes: list[str] = []
    judged, classes = _judged(graph, notes)
    taps = observe(graph.graph)
    if not taps:
        raise MoecError(f"{model}: no MoE block was raised, and {NONE_FOUND.format(minimum)}; nothing can be measured")
    layers = [LayerEntry(key, "", "", 0, 0) for key in dict.fromkeys(tap.key for tap in taps)]
    interface = {"inputs": [spec.name for spec in inputs], "output": judged}
    head = Head(_source(model), [], passes, [str(form) for form in forms], layers, **interface)
    for other in others:
        check_mergeable(os.fspath(output), head, other)
    progress("compiling")
    with job_runner(workers, executor) as runner, replacing(output, foreign_file) as aside:
        folder = aside.with_name(f"{aside.name}.rows")  # it is removed together with ``aside``
        folder.mkdir()
        sums = _LayerSums(taps, folder, moments, RowsApart(inputs, most_positions(classes)))
        sums.run(_compiled(graph, folder / "model.moec", threads), sources, progress)
        head = dataclasses.replace(head, data=sums.pieces, layers=sums.layers())
        with measuring_threads(check_threads(threads)) as run:
            measuring = _Measuring(ModelToMeasure(model, passes, secrets.token_hex(8)), run, runner)
            measured = folder / "made" if others else aside
            sensitivities = sums.sensitivities(graph, judged, forms, progress, run, notes) if judged else {}
            write_new(
                measured, head, itertools.chain(sums.arrays(forms, progress, run, measuring), sensitivities.items())
            )
        if others:
            merge(aside, [Profile.read(measured), *others])
    return sums.summary(time.perf_counter() - start, notes)


def _judged(graph: ir.Model, notes: list[str]) -> tuple[str, int]:
    """Name the output by which the model is judged, and its size along the last axis, 0 where that is dynamic. Where
    there is no such output, or several are possible, returns an empty name and adds a note."""
    inputs, outputs = (tensor_specs(values) for values in (graph.graph.inputs, graph.graph.outputs))
    try:
        judged = judged_output(outputs, token_input(inputs) is not None, None)
    except MoecError as error:
        notes.append(f"no sensitivities of layers, and nothing to judge plans by: {error}")
        return "", 0
    classes = judged.shape[-1]
    return judged.name, classes if isinstance(classes, int) else 0


def _compiled(graph: ir.Model, path: pathlib.Path, threads: int | None) -> CompiledModel:
    """Compile the model and load it for the runs.

    The artifact lies next to the profile, because temporary folders often are in memory. Its weights are mapped, so
    that those of a large model can leave memory again.
    """
    compiler.write(graph, path, CompileOptions(passes="", threads=threads))
    return load(path, pages="mapped", check_weights=False)


def _source(model: str | os.PathLike[str]) -> dict[str, str]:
    from moec.compiling.provenance import describe_source

    described = describe_source(model)
    return {"name": described["name"], "sha256": described["sha256"]}


class _LayerSums:
    """Sums of all layers of a model."""

    def __init__(self, taps: Sequence[Tap], folder: pathlib.Path, moments: bool, apart: RowsApart) -> None:
        self._folder, self._moments, self._apart = folder, moments, apart
        self._taps = list({tap.key: tap for tap in taps}.values())  # layers of equal weights are measured as one
        self._experts: dict[str, ExpertsSums] = {}
        self._inputs: dict[str, InputSums] = {}
        self._next: dict[str, str] = {}
        self.pieces: list[DataPiece] = []
        self._batches, self._tokens, self._run_seconds = 0, 0, 0.0

    def run(self, compiled: CompiledModel, sources: Sequence[Data], progress: Callable[[str], None]) -> None:
        for data in sources:
            before = self._tokens
            for batch in data:
                self._batches += 1
                check_limits(batch, compiled.interface.limits, data.path)
                seen = self._apart.split(batch)
                if seen is None:
                    continue
                progress(f"{data.name}: batch {self._batches}, {self._tokens} tokens seen")
                start = time.perf_counter()
                outputs = compiled.run(seen)
                self._run_seconds += time.perf_counter() - start
                self._add(outputs, f"{data.path}, batch {self._batches}")
            if self._tokens == before:
                raise MoecError(f"{data.path}: holds no token; nothing can be measured")
            self.pieces.append({"name": data.name, "sha256": data.sha256(), "tokens": self._tokens - before})

    def _add(self, outputs: Mapping[str, Array], where: str) -> None:
        rows: dict[str, Array] = {}
        last: tuple[str, Array] | None = None
        for tap in self._taps:
            name = tap.inputs["x"]
            if name not in rows:
                rows[name] = _finite(tap.rows(outputs), f"{where}: what node {node_name(tap.node)} reads")
            if is_moec(tap.node, "Linear"):
                continue
            weights, ids = tap.routed(outputs)
            weights = _finite(weights, f"{where}: the weights of experts of node {node_name(tap.node)}")
            chosen = self._of_experts(tap, ids.shape[1]).add(rows[name], weights, ids)
            if last is not None and len(last[1]) == len(chosen):
                self._next[last[0]] = tap.key
                self._experts[last[0]].add_following(last[1], chosen)
            last = tap.key, chosen
        for name in dict.fromkeys(tap.inputs["x"] for tap in self._taps if is_moec(tap.node, "Linear")):
            self._of_input(name, rows[name].shape[1]).add(rows[name])
        self._tokens += max(map(len, rows.values()))

    def _of_experts(self, tap: Tap, k: int) -> ExpertsSums:
        if tap.key not in self._experts:
            self._experts[tap.key] = ExpertsSums(tap.node, k, self._folder, tap.key, self._moments)
        return self._experts[tap.key]

    def _of_input(self, name: str, size: int) -> InputSums:
        if name not in self._inputs:
            self._inputs[name] = InputSums(size, self._folder, f"input{len(self._inputs)}", self._moments)
        return self._inputs[name]

    def layers(self) -> list[LayerEntry]:
        """List the entries of the profile's head."""
        return [self._linear(tap) if is_moec(tap.node, "Linear") else self._expert(tap) for tap in self._taps]

    def _linear(self, tap: Tap) -> LayerEntry:
        sums, number = self._inputs[tap.inputs["x"]], list(self._inputs).index(tap.inputs["x"])
        return LayerEntry(tap.key, "linear", node_name(tap.node), sums.size, sums.tokens, input=number)

    def _expert(self, tap: Tap) -> LayerEntry:
        sums = self._experts[tap.key]
        weights, name = sums.weights, node_name(tap.node)
        sizes = (weights.inner, sums.tokens, weights.experts, sums.k, weights.hidden)
        return LayerEntry(tap.key, "experts", name, *sizes, weights.parts, self._next.get(tap.key))

    def arrays(
        self, forms: Sequence[WeightFormat], progress: Callable[[str], None], run: ParallelRun, measuring: _Measuring
    ) -> Iterator[tuple[str, Array]]:
        yield from held_arrays(self._apart.held_back, [spec.name for spec in self._apart.specs])
        for number, tables in enumerate(run(InputSums.arrays, self._inputs.values())):
            yield from ((f"input{number}/{name}", array) for name, array in tables.items())
        linears = [tap for tap in self._taps if is_moec(tap.node, "Linear")]
        for tap, tables in zip(linears, run(lambda tap: self._errors(tap, forms), linears), strict=True):
            yield from ((f"{tap.key}/{name}", array) for name, array in tables.items())
        for position, (key, sums) in enumerate(self._experts.items()):
            progress(f"layer {position + 1} of {len(self._experts)}: second moments and errors of formats")
            yield from ((f"{key}/{name}", array) for name, array in sums.arrays(forms, measuring.of(sums.node, key)))

    def sensitivities(
        self,
        graph: ir.Model,
        output: str,
        forms: Sequence[WeightFormat],
        progress: Callable[[str], None],
        run: ParallelRun,
        notes: list[str],
    ) -> dict[str, Array]:
        """Measure the sensitivities of layers of experts, by the names of their arrays. Where that is impossible,
        returns none and adds a note."""
        layers = [(tap.key, tap.node) for tap in self._taps if not is_moec(tap.node, "Linear")]
        if not layers or not forms:
            return {}
        progress("sensitivities of layers")
        batches = cut(self._apart.again, positions_wanted(self._tokens, len(layers)))
        why_not = too_large(graph, len(layers))
        try:
            measured = {} if why_not else output_sensitivities(graph, layers, batches, output, forms, run)
        except (EvaluationError, ValueError) as error:
            measured, why_not = {}, str(error)
        if why_not:
            notes.append(f"no sensitivities of layers: {why_not}; errors of all layers will count alike")
        return {f"{key}/sensitivity": array for key, array in measured.items()}

    def _errors(self, tap: Tap, forms: Sequence[WeightFormat]) -> dict[str, Array]:
        errors = linear_errors(_matrix(tap.node), self._inputs[tap.inputs["x"]].rows(), forms)
        release_pages()
        return errors

    def summary(self, seconds: float, notes: list[str]) -> Measured:
        taps = [tap for tap in self._taps if not is_moec(tap.node, "Linear")]
        layers = [_summary(node_name(tap.node), self._experts[tap.key]) for tap in taps]
        linears = len(self._taps) - len(taps)
        held_back = positions_of(self._apart.held_back)
        return Measured(self._tokens, self._batches, self._run_seconds, seconds, layers, linears, held_back, notes)


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """Place where experts are measured: on threads, or in jobs where these run in other processes."""

    model: ModelToMeasure
    run: ParallelRun
    runner: JobRunner

    def of(self, node: ir.Node, key: str) -> Callable[[Iterable[ExpertRows]], Iterator[MeasuredExpert]]:
        """Return a function that measures the experts of a layer in their order."""
        if self.runner.is_here:
            return functools.partial(self.run, functools.partial(measure_expert, node))

        def job(seen: ExpertRows) -> Job:
            return Job(f"node {node_name(node)}: expert {seen.expert}", measure_in_job, (self.model, key, seen))

        return lambda every: self.runner.results(map(job, every))


def _summary(name: str, sums: ExpertsSums) -> LayerSummary:
    least = int(sums.count.min())
    more = None if least == 0 else max(0.0, FEW / least - 1)
    return LayerSummary(name, len(sums.count), sums.tokens, least, int((sums.count < FEW).sum()), more)


def _matrix(node: ir.Node) -> Array:
    """Decode the weight of a linear as [K,N]."""
    weight = stored_weights(node)["weight"].run_of(0).decoded(0)
    return weight if spec_of(node, LinearSpec).transposed else weight.T


def _finite(array: Array, what: str) -> Array:
    if not np.isfinite(array).all():
        raise MoecError(f"{what}: holds a NaN or an infinity; data to measure on has to give numbers")
    return array
