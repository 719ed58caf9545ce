"""Tensors of a checkpoint, in safetensors files, as weights of a model."""
