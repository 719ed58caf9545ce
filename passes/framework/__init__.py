"""The interface of a pass, and pipelines that combine and run passes."""
