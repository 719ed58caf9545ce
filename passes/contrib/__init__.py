"""How operators of onnxruntime's domain ``com.microsoft`` are spelled in ONNX and moec: one file per theme.

A decomposition takes a :class:`~moec.passes.graph.writer.Writer` and the node, and returns one value per output
(None for those that nobody uses). Definitions: onnxruntime, docs/ContribOperators.md.
"""
