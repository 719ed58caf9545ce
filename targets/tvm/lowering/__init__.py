"""Lowering of a model to one Relax function: its values, its states, and the contract with converters."""
