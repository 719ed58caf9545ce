"""Smaller models that fail in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError
from onnx import ModelProto

from .judge import Verdict
from .mutations import graphs
from .seeds import MODEL, Files

_TRIALS = 60


def shrunk(files: Files, verdict: Verdict, judge: Callable[[Files], Verdict]) -> Files:
    """Files from which parts are left out as long as the verdict stays of its kind, at most ``_TRIALS`` times."""
    expected, trials = _kind(verdict), _TRIALS if verdict.status != "hung" else 6
    try:
        ModelProto.FromString(files[MODEL])
    except DecodeError:
        return files
    position = 0
    while trials:
        candidates = list(_smaller(ModelProto.FromString(files[MODEL])))
        if position >= len(candidates):
            break
        trials -= 1
        smaller = {**files, MODEL: candidates[position].SerializeToString()}
        if _kind(judge(smaller)) == expected:
            files = smaller
        else:
            position += 1
    return files


def _kind(verdict: Verdict) -> tuple[str, str]:
    """The status and, of a message, what does not depend on names and numbers."""
    status, message = verdict
    exception = re.search(r"\b\w+(Error|Exception)\b[^;']{0,40}", message)
    return status, re.sub(r"\d+", "", exception.group()) if exception and status == "internal" else ""


def _smaller(model: ModelProto) -> Iterator[ModelProto]:
    """The model without one of its parts, for every part, the largest first."""
    for field in ("functions", "metadata_props"):
        for index in range(len(getattr(model, field))):
            yield _without(model, lambda smaller, f=field, i=index: getattr(smaller, f).__delitem__(i))
    for number, graph in enumerate(graphs(model)):
        for field in ("node", "value_info", "initializer", "input", "output"):
            for index in reversed(range(len(getattr(graph, field)))):
                yield _without(
                    model,
                    lambda smaller, n=number, f=field, i=index: getattr(list(graphs(smaller))[n], f).__delitem__(i),
                )
        for position, node in enumerate(graph.node):
            for index in range(len(node.attribute)):
                yield _without(
                    model,
                    lambda smaller, n=number, p=position, i=index: (
                        list(graphs(smaller))[n].node[p].attribute.__delitem__(i)
                    ),
                )


def _without(model: ModelProto, remove: Callable[[ModelProto], None]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    remove(copy)
    return copy
