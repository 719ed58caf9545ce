"""Compilation of a model from its source to an artifact: import, passes, code, and what the artifact says of them."""
