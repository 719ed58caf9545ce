"""Artifacts on several ranks: the exchange of rows over process groups of torch.distributed."""
