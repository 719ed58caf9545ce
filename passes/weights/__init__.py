"""Helpers shared by the passes that change how weights are stored."""
