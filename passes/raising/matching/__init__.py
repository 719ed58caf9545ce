"""Matching of a selection, or of a block, by readings that are tried one after the other."""
