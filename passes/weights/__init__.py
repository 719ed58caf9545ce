"""What the passes that change how weights are stored share."""
