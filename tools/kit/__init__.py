"""The kit: first light without a compiler. :mod:`kit.packing` makes a folder here, :mod:`kit.carried` runs there."""
