"""The contents of a GGUF file: tensors and their formats, hyperparameters, tokenizer."""
