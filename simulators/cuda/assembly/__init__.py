"""Inline assembly of CUDA sources: its text, its PTX, and the registry of models of instructions."""
