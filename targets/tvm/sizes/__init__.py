"""Symbolic sizes: arithmetic, conditions that hold, shapes, and how C spells them."""
