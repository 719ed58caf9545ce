"""Construction of the graph of a GGUF file's model, node by node."""
