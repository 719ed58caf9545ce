"""Formulations in PyTorch through both exporters, and the verdicts on them. Needs the extra "torch"."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any, Literal

import numpy as np
import onnx
import torch

from .formulations import FORMULATIONS
from .formulations.module import D, Mixture
from .judge import Feeds, Verdict, judge

Exporter = Literal["dynamo", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
TOKENS = 32
"""Number of token ids."""


class NotExportedError(Exception):
    """PyTorch cannot export the module; the text is the first line of its message."""


def feeds_for(kind: type[Mixture]) -> Feeds:
    """Several numbers of tokens, none of which is that of the export."""
    random = np.random.default_rng(0)
    leading = [(1, 5), (2, 3), (3, 7)] if kind.sequences else [(2,), (7,), (20,)]
    feeds: Feeds = [{"x": random.standard_normal((*sizes, D)).astype(np.float32)} for sizes in leading]
    if kind.tokens:
        feeds = [arrays | {"tokens": random.integers(0, TOKENS, len(arrays["x"]))} for arrays in feeds]
    return feeds


def made(name: str) -> Mixture:
    torch.manual_seed(0)
    return FORMULATIONS[name]().eval()


def exported(name: str, exporter: Exporter) -> onnx.ModelProto:
    """Raises NotExportedError."""
    kind = FORMULATIONS[name]
    x = torch.randn(2, 11, D) if kind.sequences else torch.randn(11, D)
    inputs = (x, torch.randint(0, TOKENS, (11,))) if kind.tokens else (x,)
    names = ["x", "tokens"][: len(inputs)]
    axes = {0: "B", 1: "S"} if kind.sequences else {0: "T"}
    options: dict[str, Any] = {"input_names": names, "verbose": False}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if exporter == "dynamo":
                dynamic = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for _ in inputs)
                program = torch.onnx.export(made(name), inputs, dynamo=True, dynamic_shapes=dynamic, **options)
                assert program is not None
                return program.model_proto
            file = io.BytesIO()
            dynamic_axes = {input_name: axes for input_name in names}
            torch.onnx.export(
                made(name), inputs, file, dynamo=False, dynamic_axes=dynamic_axes, opset_version=17, **options
            )
        except Exception as error:  # exporters raise whatever they stumble over
            raise NotExportedError((str(error) or type(error).__name__).splitlines()[0]) from error
    return onnx.load_from_string(file.getvalue())


def verdict_of(name: str, exporter: Exporter) -> Verdict:
    """Raises NotExportedError."""
    kind, module = FORMULATIONS[name], made(name)
    feeds = feeds_for(kind)
    with torch.no_grad():
        results = [module(*(torch.from_numpy(array) for array in arrays.values())) for arrays in feeds]
    expected = [
        [output.numpy() for output in (result if isinstance(result, tuple) else (result,))] for result in results
    ]
    return judge(exported(name, exporter), feeds, expected, kind.blocks, rounds=False)
