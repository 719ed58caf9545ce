"""ONNX files and messages become models: read, brought to moec's opset, inlined and checked."""
