"""The command line: commands (``main``), their options, and the printing of their results."""
