"""Estimates of what launches take on a GPU, from published figures. moec measured none of them."""
