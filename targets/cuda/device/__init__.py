"""NVIDIA's GPUs as the runtime uses them."""
