"""Why a block is left as it is."""


class NotUnderstoodError(Exception):
    """The block looks like a mixture of experts, but something in it is beyond the dialect or beyond the matchers."""
