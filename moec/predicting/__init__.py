"""Prediction of distributed runs before they run: links, expert layers, and what would make them faster."""
