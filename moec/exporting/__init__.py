"""Export of models to files that other programs run: onnxruntime, llama.cpp, transformers."""
