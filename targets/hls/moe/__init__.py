"""MoE blocks: found in a graph, quantised, designed and written as projects."""
