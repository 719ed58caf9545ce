"""A check of an exported model: the installed onnxruntime opens it, so that it has every operator for its types.

The session is made without optimisation, so that weights beside the model are mapped and not read.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from moec.common.errors import one_line

if TYPE_CHECKING:
    from moec.passes.framework.base import Report


def check_opening(model: pathlib.Path, subject: str, report: Report, library: pathlib.Path | None = None) -> None:
    """Warn, about ``subject``, where onnxruntime does not open a model. ``library``: its custom operators."""
    import onnxruntime

    report.progress("opening it in onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        version = onnxruntime.__version__
        report.warn(
            "export", subject, f"onnxruntime {version}, which is installed, does not open it: {one_line(error)}"
        )
