"""Converters of generic ONNX operators, one file per theme, and their table."""
