"""What is read of a graph around the blocks: dense products, residual streams, calibration, the rest."""
