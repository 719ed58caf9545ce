"""What a pass is, and how passes are put together and run."""
