"""MoE blocks as custom operators of ONNX Runtime: a block becomes a program, and programs a library of operators."""
