"""Placements: which rank of a distributed run holds which experts, and how they are found and judged."""
