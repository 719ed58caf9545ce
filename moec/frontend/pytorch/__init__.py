"""Modules and exported programs of PyTorch become models, by way of ONNX."""
