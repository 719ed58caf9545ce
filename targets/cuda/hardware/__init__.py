"""GPUs that kernels are made for."""
