"""Plans of experts: their formats, ranks and memory, and how placements on ranks are found and judged."""
