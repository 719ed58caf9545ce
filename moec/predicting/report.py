"""The prediction of ``moec inspect --ranks``: an artifact on several ranks, at some numbers of tokens."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from moec.common.errors import MoecError
from moec.exploring.subject import Subject
from moec.placing.place import place_in_order
from moec.placing.placement import ExpertPlacement
from moec.placing.plan import read_plan
from moec.placing.volume import ExchangedLayer, TransportChoice, choose_for_all
from moec.predicting.advice import LEAST, RunChange, changes, other_placements
from moec.predicting.artifact import ModelOnRanks, model_on_ranks
from moec.predicting.layers import Schedule
from moec.predicting.links import Link, Links
from moec.predicting.workload import Prediction, Setup, Workload, predict
from moec.runtime.ranks import LEAST_OF_HALF, LEAST_WAIT


@dataclasses.dataclass(frozen=True)
class RanksReport:
    """Predictions of an artifact on ranks: one for each number of tokens of a rank, with changes of the run, the best
    first. ``placed``: the placement in words; ``choice``: the transport."""

    model: ModelOnRanks
    links: Links
    placed: str
    choice: TransportChoice
    predictions: tuple[tuple[Prediction, tuple[RunChange, ...]], ...]


def predict_on_ranks(
    subject: Subject,
    ranks: int,
    nodes: int,
    inside: Link,
    between: Link,
    tokens: Sequence[int],
    plan: pathlib.Path | None = None,
    machine: str | None = None,
) -> RanksReport:
    """Predict runs of an artifact on ``ranks`` ranks of ``nodes`` machines, each rank with so many ``tokens``.

    ``plan``: a file as ``moec plan --ranks`` prints it; without one, the artifact's own where it is for as many ranks
    and nodes, else consecutive experts on consecutive ranks.
    ``machine``: a known GPU. Raises MoecError as :func:`moec.predicting.artifact.model_on_ranks`, and for a placement
    of other layers or ranks.
    """
    ExpertPlacement(ranks, (), nodes)  # the numbers are checked before they are used
    model = model_on_ranks(subject, tokens[0], machine)
    compiled = subject.artifact.manifest.placement
    own = compiled if compiled is not None and (compiled.ranks, compiled.nodes) == (ranks, nodes) else None
    placed, words = _placement(model.workload, ranks, nodes, plan, own)
    links = Links(inside, between, nodes, "nccl" if model.has_device else "gloo")
    rows = [
        ExchangedLayer(own, layer.k, layer.experts.width, layer.recorded)
        for own, layer in zip(placed.layers, model.workload.layers, strict=True)
    ]
    choice = choose_for_all(rows, nodes)
    if placed.transport is not None and placed.transport != choice.transport:
        choice = TransportChoice(placed.transport, f"{words}; else {choice.transport}: {choice.reason}")
    predictions, others = [], other_placements(model.workload, placed)
    for count in tokens:
        setup = Setup(model.machine.roofline, links, placed, count, Schedule(choice.transport))
        predicted = predict(model.workload, setup)
        may_halve = ranks > 1 and count // 2 >= LEAST_OF_HALF and not model.has_device
        if may_halve and predicted.exposed >= LEAST_WAIT:  # as programs run
            predicted = predict(model.workload, dataclasses.replace(setup, halves=True))
        predictions.append((predicted, tuple(changes(model.workload, predicted, others))))
    return RanksReport(model, links, words, choice, tuple(predictions))


def _placement(
    workload: Workload, ranks: int, nodes: int, path: pathlib.Path | None, compiled: ExpertPlacement | None
) -> tuple[ExpertPlacement, str]:
    """Read a placement, or take the one of the artifact, or make the one without a profile, with words for it."""
    sizes = {layer.experts.name: len(layer.popularity) for layer in workload.layers}
    if path is None and compiled is None:
        return place_in_order(sizes.items(), ranks, nodes), "consecutive experts on consecutive ranks"
    read = compiled if path is None else read_plan(path).placement
    where = "the artifact" if path is None else str(path)
    if read is None:
        raise MoecError(f"{where}: ranks is missing; expected a plan of {ranks} ranks; make it with moec plan --ranks")
    if (read.ranks, read.nodes) != (ranks, nodes):
        raise MoecError(f"{where}: is for {read.ranks} ranks on {read.nodes} nodes, not for {ranks} on {nodes}")
    of_name = {layer.name: layer for layer in read.layers}
    for name, experts in sizes.items():
        if name not in of_name or of_name[name].experts != experts:
            raise MoecError(
                f"{where}: lacks a layer {name!r} of {experts} experts; make it anew with moec plan --ranks"
            )
    words = "as compiled" if path is None else f"as in {path.name}"
    return dataclasses.replace(read, layers=tuple(of_name[name] for name in sizes)), words


def report_data(report: RanksReport) -> dict[str, Any]:
    """Describe a report as plain data, in seconds and bytes."""
    setup = report.predictions[0][0].setup
    return {
        "predicted": True,
        "ranks": setup.placement.ranks,
        "nodes": setup.placement.nodes,
        "links": dataclasses.asdict(report.links),
        "machine": {"title": report.model.machine.title, "source": report.model.machine.source},
        "roofline": report.model.machine.roofline.as_data(),
        "routing": report.model.routing,
        "placement": report.placed,
        "transport": dataclasses.asdict(report.choice),
        "not_predicted": {"layers": list(report.model.left_out), "kernels": list(report.model.unknown)},
        "runs": [_run_data(*each) for each in report.predictions],
    }


def _run_data(predicted: Prediction, ranked: Sequence[RunChange]) -> dict[str, Any]:
    return {
        "tokens_per_rank": predicted.setup.tokens,
        "halves": predicted.setup.halves,
        "seconds": predicted.seconds,
        "seconds_per_token": predicted.seconds_per_token,
        "communication_share": predicted.exposed,
        "layers": [
            {
                "name": layer.name,
                "seconds": layer.seconds,
                "send_seconds": layer.out,
                "experts_seconds": layer.experts,
                "return_seconds": layer.back,
                "communication_share": layer.exposed,
                "imbalance": layer.imbalance,
                "bytes_sent": layer.sent,
            }
            for layer in predicted.layers
        ],
        "changes": [dataclasses.asdict(change) | {"helps": change.saved >= LEAST} for change in ranked],
    }
