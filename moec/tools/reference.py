"""References for the outputs of a model: onnxruntime, and the reference interpreter where that fails."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.errors import MoecError, one_line
from moec.frontend import gguf
from moec.frontend.huggingface import is_folder

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import DTypeLike


def open_session(
    model_path: str | os.PathLike[str],
    threads: int | None = None,
    *,
    library: pathlib.Path | None = None,
    rounding_activations: bool = False,
) -> Any:
    """Open an onnxruntime session on the CPU. Raises MoecError when onnxruntime cannot load the model.

    ``library``: a shared library with custom operators that the model needs.
    ``rounding_activations``: whether products with dequantised weights may round activations to 8 bits, which
    onnxruntime does by default, although the model does not say so.
    """
    import onnxruntime

    path = pathlib.Path(model_path)
    if not path.is_file():
        raise MoecError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; expected an ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not rounding_activations:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        if library is not None:
            options.register_custom_ops_library(os.fspath(library))
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise MoecError(f"{path}: onnxruntime itself cannot load the model: {one_line(error)}") from error


def run_session(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a session and return its outputs by name. Raises MoecError when onnxruntime cannot run the model on these
    inputs."""
    names = [output.name for output in session.get_outputs()]
    taken_names = {taken.name for taken in session.get_inputs()}
    try:
        return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in taken_names}), strict=True))
    except Exception as error:
        sizes = ", ".join(f"{name}{list(value.shape)}" for name, value in inputs.items())
        raise MoecError(f"onnxruntime itself cannot run the model on {sizes}: {one_line(error)}") from error


def has_no_interface(model_path: str | os.PathLike[str]) -> bool:
    """Whether the file has weights and no graph, so that its inputs were defined when it was compiled."""
    return is_folder(model_path) or gguf.is_file(model_path)


class Reference:
    """The original model: in onnxruntime, and in the reference interpreter, in float64, where that fails or the model
    is no ONNX file."""

    def __init__(self, model_path: str | os.PathLike[str], model: ir.Model) -> None:
        self._model = model
        self._session: Any = None
        self._failure = ""
        if has_no_interface(model_path):
            self._failure = "onnxruntime reads no GGUF files, and no folders of Hugging Face models"
            return
        try:
            self._session = open_session(model_path)
        except MoecError as error:
            self._failure = str(error)

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str | None]:
        """Run the model and return its outputs by name, and the reason why they are not onnxruntime's. Raises MoecError
        where the interpreter fails, too."""
        failure = self._failure
        if self._session is not None:
            try:
                return run_session(self._session, inputs), None
            except MoecError as error:
                failure = str(error)
        from moec.ir import interpreter

        try:
            outputs = expected_outputs(self._model, inputs, np.float64)
        except (interpreter.EvaluationError, ValueError) as error:
            raise MoecError(f"{failure}; neither can the reference interpreter: {one_line(error)}") from error
        return outputs, f"{failure}; the reference interpreter says what is expected"


def expected_outputs(
    model: ir.Model, inputs: Mapping[str, np.ndarray], dtype: DTypeLike | None
) -> dict[str, np.ndarray]:
    """Compute the outputs with the reference interpreter, in the types that the model declares."""
    from moec.ir import interpreter

    types = {value.name: value.dtype for value in model.graph.outputs}
    results = interpreter.run(model, inputs, dtype=dtype)
    with np.errstate(over="ignore"):
        return {name: _as_declared(array, types[name]) for name, array in results.items()}


def _as_declared(array: np.ndarray, dtype: ir.DataType | None) -> np.ndarray:
    return array if dtype is None else array.astype(dtype.numpy())
