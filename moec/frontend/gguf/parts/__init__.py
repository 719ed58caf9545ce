"""Parts of decoders that several architectures are made of."""
