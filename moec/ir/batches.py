"""Batched models: graphs that compute tokens of several sequences of different lengths in one run.

The tokens of all sequences lie one after the other along the one axis of tokens, in a single batch entry. Nodes that
treat each token alone do not notice. Operators that hold a state (caches of keys and values) treat each sequence with
its own state, which lies in pages that all sequences share. States that each run replaces, such as those of
recurrences, are [N, ...], with an entry for each sequence. A program takes, after the inputs of the graph, of
which :data:`~moec.common.specs.POSITIONS` may be one (:data:`~moec.common.specs.BATCH_TENSORS`):

- ``lengths`` int64[N]: tokens in the state of each sequence, the new ones included;
- ``spans`` int64[N, 2]: the first of its new tokens along the axis of tokens, and how many there are;
- ``table`` int64[N, M]: its pages, in the order of its tokens;
- ``places`` int64[T]: the place of each new token in all the pages one after the other;
- ``window_table`` int64[N, M], ``window_places`` int64[T]: the same in the pages of states of which attention sees a
  window alone. Pages before the window may be missing, which are less than 0;
- ``rows`` int64[W]: the tokens whose logits are computed;
- ``entries_before``, ``entries_after`` int64[N]: the entries in which its states that each run replaces lie, and those
  to which the program writes the states after its new tokens. No entry is both, of any two sequences.
"""

from __future__ import annotations

import onnx_ir as ir

BATCHED_KEY = "moec.batched"
WINDOW = "window"
"""Attribute of a batched graph's causal Attention: each query sees the last so many of the keys up to its own."""

SINKS = 7
"""Input of a batched graph's Attention: logits [1, heads, 1, 1] of sinks, whose weights go to no value."""


def mark_batched(model: ir.Model) -> None:
    """Say in the model's metadata that its tokens are those of several sequences."""
    model.metadata_props[BATCHED_KEY] = "1"


def is_batched(model: ir.Model) -> bool:
    return BATCHED_KEY in model.metadata_props
