"""Parts of decoders that several architectures share."""
