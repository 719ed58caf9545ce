"""Records of what the compiler makes of models, for :mod:`replay`."""
