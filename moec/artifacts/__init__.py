"""Artifacts: compiled programs and projects written to folders, and folders loaded as models."""
