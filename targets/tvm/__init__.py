"""ONNX IR to Relax to objects. TVM is imported here first, and without torch."""

from moec.runtime.library import without_torch

with without_torch():
    import tvm as tvm
