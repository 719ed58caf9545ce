"""Predictions of the time of launches on a GPU, from what is known at compile time. moec measured nothing of it."""
