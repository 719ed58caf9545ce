"""Readers of C++ in the style of HLS code."""
