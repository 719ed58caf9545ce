"""FPGAs and boards: their memories and ports, and what a design takes of them."""
