"""What is done with a model or an artifact beside compiling and running it: checks and measurements."""
