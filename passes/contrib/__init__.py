"""Decompositions of operators of onnxruntime's domain ``com.microsoft`` into ONNX and moec: one file per theme.

A decomposition takes a :class:`~moec.passes.graph.writer.Writer` and the node, and returns one value per output (None
for unused outputs). Definitions: onnxruntime, docs/ContribOperators.md.
"""
