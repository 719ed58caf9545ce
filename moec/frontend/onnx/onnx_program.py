"""The program of :mod:`moec.frontend.onnx.onnx_process`, run by :mod:`moec.common.child_program`."""

from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType


class CannotConvertError(Exception):
    """ONNX's version converter refuses the model."""


def main(message: bytes, extension: str, version: str, target: str) -> bytes:
    """Convert a serialized model from opset ``version`` to opset ``target`` and check it by shape inference.

    ``extension``: the path of ONNX's extension module, the only part of ONNX that is loaded.
    """
    loader = ExtensionFileLoader("onnx_cpp2py_export", extension)
    onnx = loader.create_module(ModuleSpec("onnx_cpp2py_export", loader, origin=extension))
    loader.exec_module(onnx)
    return converted(onnx, message, version, target)


def converted(onnx: ModuleType, message: bytes, version: str, target: str) -> bytes:
    """The model that :func:`main` returns. ``onnx``: the extension module."""
    if version != target:
        try:
            message = onnx.version_converter.convert_version(message, int(target))
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise CannotConvertError(str(error)) from error
    check_type = strict = data_propagation = True
    onnx.shape_inference.infer_shapes(message, check_type, strict, data_propagation)
    return message
