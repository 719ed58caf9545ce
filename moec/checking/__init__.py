"""Checks that a model computes what it should: inputs that cover its decisions, and comparison of results."""
