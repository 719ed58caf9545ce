"""What several layers share, and what knows none of them."""
