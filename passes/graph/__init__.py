"""Reading and changing a graph: small edits, and writing many nodes."""
