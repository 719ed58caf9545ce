"""The command line: commands (``main``), their options, and the printing of their results."""

INTERRUPTED = 130
"""Exit code that shells report of a program ended by SIGINT."""
