"""FPGAs and boards: their resources, memories and ports, and the estimated use of these by a design."""
