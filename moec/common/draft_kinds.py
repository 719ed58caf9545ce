"""Kinds of drafts, by the names that options have for them."""

NGRAM, MTP = "ngram", "mtp"
"""Drafts by what followed the last tokens before; drafts by the model's own layers for that."""
