"""The keys that each query of an Attention sees, read from the operators that make its mask."""
