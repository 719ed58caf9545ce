"""Tools for models and artifacts beyond compiling and running: checks and measurements."""
